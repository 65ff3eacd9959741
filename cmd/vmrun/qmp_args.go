package main

import (
	"encoding/json"
	"fmt"
	"strings"
)

// qmpArguments makes a command's arguments of what stands after it: a JSON
// object, or words KEY=VALUE, whose value is JSON or else a string, and whose
// dots lead into objects. No words: no arguments.
func qmpArguments(words []string) (json.RawMessage, error) {
	if len(words) == 0 {
		return nil, nil
	}
	if text := strings.Join(words, " "); strings.HasPrefix(strings.TrimSpace(text), "{") {
		var object map[string]json.RawMessage
		if err := json.Unmarshal([]byte(text), &object); err != nil {
			return nil, fmt.Errorf("parse arguments %s: %w", text, err)
		}
		return json.RawMessage(text), nil
	}
	object := map[string]any{}
	for _, word := range words {
		key, value, ok := strings.Cut(word, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("parse argument %q: want KEY=VALUE, or one JSON object", word)
		}
		if err := setArgument(object, strings.Split(key, "."), argumentValue(value)); err != nil {
			return nil, fmt.Errorf("parse argument %q: %w", word, err)
		}
	}
	return json.Marshal(object)
}

// argumentValue is JSON, or else a string.
func argumentValue(text string) any {
	if json.Valid([]byte(text)) {
		return json.RawMessage(text)
	}
	return text
}

func setArgument(object map[string]any, path []string, value any) error {
	if len(path) == 1 {
		if _, twice := object[path[0]]; twice {
			return fmt.Errorf("%s is there twice", path[0])
		}
		object[path[0]] = value
		return nil
	}
	if object[path[0]] == nil {
		object[path[0]] = map[string]any{}
	}
	inner, ok := object[path[0]].(map[string]any)
	if !ok {
		return fmt.Errorf("%s is no object", path[0])
	}
	return setArgument(inner, path[1:], value)
}

package profiles

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
)

// labelPattern is CheckName's rule as a regular expression of ECMA 262.
const labelPattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"

// object is a JSON object; encoding/json orders its keys.
type object = map[string]any

// Schema gives the format of profiles as a JSON Schema (draft 7, which editors
// know best). It is made from the types that files are decoded into, so that
// it has exactly their keys. A file names it in its first line, to be completed
// and checked while it is written: "#:schema ./vmrun.schema.json".
func Schema() ([]byte, error) {
	schema := tableSchema(reflect.TypeFor[rawProfile]())
	schema["$schema"] = "http://json-schema.org/draft-07/schema#"
	schema["title"] = "vmrun profile"
	text, err := json.MarshalIndent(schema, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode schema: %w", err)
	}
	return append(text, '\n'), nil
}

// tableSchema describes a raw struct. Only keys in elements of arrays are
// required: in a table they may come from the file that this one extends.
func tableSchema(t reflect.Type) object {
	properties := make(object)
	for _, f := range fieldsOf(t) {
		if !f.unsupported() {
			properties[f.key] = fieldSchema(&f, t.Field(f.index).Type)
		}
	}
	schema := object{"type": "object", "properties": properties, "additionalProperties": false}
	switch t {
	case reflect.TypeFor[rawDisk]():
		schema["required"] = []string{"path"}
	case reflect.TypeFor[rawNIC]():
		schema["required"] = []string{"network"}
	case reflect.TypeFor[rawNetwork]():
		schema["allOf"] = modeSchemas()
	case reflect.TypeFor[rawProfile]():
		properties["name"].(object)["pattern"] = labelPattern
	}
	return schema
}

func fieldSchema(f *field, t reflect.Type) object {
	schema := typeSchema(t)
	schema["description"] = f.doc
	if f.enum != nil {
		schema["enum"] = f.enum
	}
	if f.max != 0 {
		schema["minimum"], schema["maximum"] = f.min, f.max
	}
	if f.example != "" && t.Kind() != reflect.Slice {
		schema["examples"] = []string{f.example}
	}
	if f.initial != "" {
		schema["default"] = initialValue(f.initial, t)
	}
	return schema
}

func typeSchema(t reflect.Type) object {
	switch t.Kind() {
	case reflect.Pointer:
		return scalarSchema(t.Elem())
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Struct {
			return object{"type": "array", "items": tableSchema(t.Elem())}
		}
		return object{"type": "array", "items": scalarSchema(t.Elem())}
	case reflect.Map:
		return object{
			"type":                 "object",
			"additionalProperties": tableSchema(t.Elem()),
			"propertyNames":        object{"pattern": labelPattern, "not": object{"enum": builtinNames()}},
		}
	}
	return tableSchema(t)
}

func scalarSchema(t reflect.Type) object {
	switch {
	case t == reflect.TypeFor[Size]():
		return object{"type": "string", "pattern": "^[0-9]+ ?([KMGT]i?)?B$"}
	case t.Kind() == reflect.Bool:
		return object{"type": "boolean"}
	case t.Kind() == reflect.Int:
		return object{"type": "integer"}
	}
	return object{"type": "string"}
}

// initialValue gives the text of a default its type.
func initialValue(text string, t reflect.Type) any {
	switch {
	case t.Elem().Kind() == reflect.Bool:
		return text == "true"
	case t.Elem().Kind() == reflect.Int:
		n, _ := strconv.Atoi(text)
		return n
	}
	return text
}

// modeSchemas is the table of modes: for each, the keys of a network that it
// takes.
func modeSchemas() []object {
	var schemas []object
	for _, m := range modes {
		schemas = append(schemas, object{
			"if":   object{"properties": object{"mode": object{"const": m.mode}}, "required": []string{"mode"}},
			"then": object{"propertyNames": object{"enum": append([]string{"mode"}, slices.Sorted(slices.Values(m.network))...)}},
		})
	}
	return schemas
}

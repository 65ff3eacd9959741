package main

import (
	"fmt"
	"testing"
)

func TestQMPArguments(t *testing.T) {
	for _, test := range []struct {
		words []string
		want  string
	}{
		{nil, ""},
		{[]string{`{"a": 1}`}, `{"a": 1}`},
		{[]string{`{"a":`, `1}`}, `{"a": 1}`},
		{[]string{"a=1", "b=x", "c.d=true", "c.e=[1]", `f="1"`, "g="}, `{"a":1,"b":"x","c":{"d":true,"e":[1]},"f":"1","g":""}`},
	} {
		got, err := qmpArguments(test.words)
		if err != nil || string(got) != test.want {
			t.Errorf("%q: %s, %v", test.words, got, err)
		}
	}
	for _, bad := range [][]string{{"{"}, {`{"a":1}`, "b=2"}, {"a"}, {"=1"}, {"a=1", "a=2"}, {"a=1", "a.b=2"}, {"[1]"}} {
		if got, err := qmpArguments(bad); err == nil {
			t.Errorf("%q: %s", bad, got)
		}
	}
}

const testSchema = `[
	{"name":"stop","meta-type":"command","arg-type":"0"},
	{"name":"screendump","meta-type":"command","arg-type":"1"},
	{"name":"set-action","meta-type":"command","arg-type":"2"},
	{"name":"SHUTDOWN","meta-type":"event","arg-type":"0"},
	{"name":"0","meta-type":"object","members":[]},
	{"name":"1","meta-type":"object","members":[{"name":"filename","type":"str"},{"name":"inner","type":"3"}]},
	{"name":"2","meta-type":"object","members":[{"name":"reboot","type":"4"},{"name":"live","type":"bool"}],
		"tag":"reboot","variants":[{"case":"reset","type":"5"}]},
	{"name":"3","meta-type":"object","members":[{"name":"reboot","type":"4"}]},
	{"name":"4","meta-type":"enum","values":["reset","shutdown"]},
	{"name":"5","meta-type":"object","members":[{"name":"only","type":"str"}]},
	{"name":"bool","meta-type":"builtin","json-type":"boolean"},
	{"name":"str","meta-type":"builtin","json-type":"string"}]`

func TestQMPCompletion(t *testing.T) {
	s, err := parseSchema([]byte(testSchema))
	if err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"":                              "0 [screendump set-action stop]",
		"s":                             "0 [screendump set-action stop]",
		"se":                            "0 [set-action]",
		"S":                             "0 []",
		"stop ":                         "5 []",
		"set-action ":                   "11 [live= only= reboot=]",
		"set-action re":                 "11 [reboot=]",
		"set-action reboot=":            "18 [reset shutdown]",
		"set-action reboot=r":           "18 [reset]",
		"set-action live=":              "16 [false true]",
		"set-action live=true reboot=s": "28 [shutdown]",
		"screendump inn":                "11 [inner.]",
		"screendump inner.":             "17 [reboot=]",
		"screendump inner.reboot=s":     "24 [shutdown]",
		"screendump filename=":          "20 []",
		"nonsense x":                    "9 []",
		"nonsense x.y.z=":               "15 []",
	} {
		start, got := s.complete(line)
		if got := fmt.Sprint(start, " ", got); got != want {
			t.Errorf("%q: %s, want %s", line, got, want)
		}
	}
	if _, err := parseSchema([]byte("{")); err == nil {
		t.Error("parsed half a schema")
	}
}

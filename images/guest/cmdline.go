package guest

import (
	"os"
	"strings"
)

// kernelParameters reads the parameters of modules from the kernel's command line.
func kernelParameters() (map[string]string, error) {
	line, err := os.ReadFile("/proc/cmdline")
	return parseParameters(string(line)), err
}

// parseParameters collects MODULE.NAME=VALUE words by module. The kernel leaves
// it to whoever loads a module to pass them on; so a microvm's kernel learns of
// its virtio_mmio devices.
func parseParameters(line string) map[string]string {
	params := map[string]string{}
	for _, word := range splitWords(line) {
		if word == "--" {
			break // the rest is init's
		}
		name, _, _ := strings.Cut(word, "=")
		module, _, ok := strings.Cut(name, ".")
		if !ok || module == "" {
			continue
		}
		param := word[len(module)+1:]
		key := parameterModule(module)
		params[key] = strings.TrimSpace(params[key] + " " + param)
	}
	return params
}

// parameterModule is the name by which parameters address a module's file.
func parameterModule(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(file, ".ko"), "-", "_")
}

// splitWords splits a kernel command line at spaces outside of double quotes.
func splitWords(line string) []string {
	quoted := false
	return strings.FieldsFunc(line, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return !quoted && (r == ' ' || r == '\n' || r == '\t')
	})
}

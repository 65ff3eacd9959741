package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vmrun/vmrun/vm"
)

// completeOneVM completes the name of a VM that fits, and nothing after it.
func completeOneVM(fits func(vm.Machine) bool) cobra.CompletionFunc {
	vms := completeVMs(fits)
	return func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return vms(cmd, args, word)
	}
}

// completeCopy completes SRC and DST of cp: VM: for one of them, and files here for
// the other. What is in a guest is not asked for.
func completeCopy(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 1 || isRemote(word) {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	if len(args) == 1 && isRemote(args[0]) {
		return nil, cobra.ShellCompDirectiveDefault
	}
	var places []cobra.Completion
	vms, _ := completeVMs(vm.Machine.Alive)(cmd, nil, word)
	for _, m := range vms {
		if name, state, _ := strings.Cut(m, "\t"); strings.HasPrefix(name, word) {
			places = append(places, cobra.CompletionWithDesc(name+":", state))
		}
	}
	switch {
	case len(args) == 1:
		return places, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	case len(places) == 0:
		return nil, cobra.ShellCompDirectiveDefault
	}
	// A shell completes files by itself only where it is given nothing.
	return append(places, localFiles(word)...), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

func isRemote(text string) bool {
	p, err := parsePlace(text)
	return err == nil && p.vm != "" || strings.HasSuffix(text, ":")
}

// localFiles are the files of this folder that begin with a word, without hidden
// ones.
func localFiles(word string) []cobra.Completion {
	found, _ := filepath.Glob(strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(word) + "*")
	var names []cobra.Completion
	for _, name := range found {
		if strings.HasPrefix(name, ".") {
			continue
		}
		if fi, err := os.Stat(name); err == nil && fi.IsDir() {
			name += "/"
		}
		names = append(names, name)
	}
	return names
}

// flagWords are what flags take, by the command where it matters, and by the flag.
// One that ends with a = goes on.
var flagWords = map[string][]string{
	"color":              {"auto", "always", "never"},
	"log-format":         {"text", "json"},
	"escape":             {"ctrl-]", "none"},
	"run wait":           {"started", "ip", "port=", "agent", "log="},
	"restore wait":       {"started", "ip", "port=", "agent", "log="},
	"wait for":           {"ip", "port=", "agent", "log="},
	"ps filter":          {"state=", "network=", "name=", "profile="},
	"attach disk format": {"auto", "qcow2", "raw"},
}

// pathFlags are those that take a path of this host, which the shell completes.
var pathFlags = []string{"report", "write"}

// asksCompletion tells whether a shell asks what a command line may go on with.
func asksCompletion(args []string) bool {
	return len(args) > 0 && (args[0] == cobra.ShellCompRequestCmd || args[0] == cobra.ShellCompNoDescRequestCmd)
}

// completeFlags makes what each flag of a command and of those below it takes known
// to shells, which offer files otherwise.
func completeFlags(c *cobra.Command) {
	_, path, _ := strings.Cut(c.CommandPath(), " ")
	c.LocalFlags().VisitAll(func(f *pflag.Flag) {
		words, known := flagWords[strings.TrimSpace(path+" "+f.Name)]
		if !known {
			words, known = flagWords[c.Name()+" "+f.Name]
		}
		if !known {
			words = flagWords[f.Name]
		}
		if slices.Contains(pathFlags, f.Name) {
			return
		}
		_ = c.RegisterFlagCompletionFunc(f.Name, wordsOf(words)) // fails where it has been done
	})
	for _, sub := range c.Commands() {
		completeFlags(sub)
	}
}

func wordsOf(words []string) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		directive := cobra.ShellCompDirectiveNoFileComp
		var fit []cobra.Completion
		for _, w := range words {
			if !strings.HasPrefix(w, typed) {
				continue
			}
			if fit = append(fit, w); strings.HasSuffix(w, "=") {
				directive |= cobra.ShellCompDirectiveNoSpace
			}
		}
		return fit, directive
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vmrun/vmrun/vm"
)

// chosenVMs finds the VMs that a command names, each once, or all that live.
func chosenVMs(ctx context.Context, names []string, all bool) ([]vm.Machine, error) {
	host, err := locateHost()
	if err != nil {
		return nil, err
	}
	if all {
		found, err := vm.List(ctx, host)
		return slices.DeleteFunc(found, func(m vm.Machine) bool { return !m.Alive() }), err
	}
	var found []vm.Machine
	var errs []error
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			continue
		}
		m, err := vm.Open(ctx, host, name)
		if err == nil {
			err = m.Err
		}
		found, errs = append(found, m), append(errs, err)
	}
	return found, errors.Join(errs...)
}

// oneVM finds the VM of a name.
func oneVM(ctx context.Context, name string) (vm.Machine, error) {
	found, err := chosenVMs(ctx, []string{name}, false)
	if err != nil {
		return vm.Machine{}, err
	}
	return found[0], nil
}

// living refuses a VM that there is nothing to ask of any more.
func living(m vm.Machine, verb string) error {
	if m.Alive() {
		return nil
	}
	return fmt.Errorf("%s %s: it %s", verb, m.Name, m.Phase.Predicate())
}

// vmArgs are the arguments of a command for some VMs, or with --all for all.
func vmArgs(all *bool) cobra.PositionalArgs {
	return usageArgs(func(_ *cobra.Command, args []string) error {
		switch {
		case *all && len(args) > 0:
			return errors.New("want names or --all, not both")
		case !*all && len(args) == 0:
			return errors.New("want at least one VM, or --all")
		}
		return nil
	})
}

func someVMs(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return errors.New("want at least one VM, got none")
	}
	return nil
}

func singleVM(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("want one VM, got %d arguments", len(args))
	}
	return nil
}

// completeVMs completes the names of VMs that fit.
func completeVMs(fits func(vm.Machine) bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		host, err := locateHost()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		found, _ := vm.List(context.Background(), host)
		var names []cobra.Completion
		for _, m := range found {
			if fits(m) && !slices.Contains(args, m.Name) {
				names = append(names, cobra.CompletionWithDesc(m.Name, string(m.Phase)))
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

func anyVM(vm.Machine) bool { return true }

// each does something with all VMs at once and returns all errors, in order.
func each(machines []vm.Machine, do func(i int, m vm.Machine) error) error {
	errs := make([]error, len(machines))
	var all sync.WaitGroup
	for i, m := range machines {
		all.Go(func() { errs[i] = do(i, m) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// syncWriter writes whole lines of several goroutines.
type syncWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *syncWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}

// rootsVMsRun tells an ordinary user's process that root has VMs, whose folders
// it may not look into.
func rootsVMsRun() bool {
	if os.Geteuid() == 0 {
		return false
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	return slices.ContainsFunc(dirs, func(dir string) bool {
		fi, err := os.Stat(dir)
		if err != nil || ownerOf(fi) != 0 {
			return false
		}
		text, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		return err == nil && ownsVM(strings.Split(string(text), "\x00"))
	})
}

// ownsVM tells whether a command line is that of a process that a VM belongs to.
func ownsVM(argv []string) bool {
	if len(argv) < 2 || filepath.Base(argv[0]) != "vmrun" {
		return false
	}
	return argv[1] == supervisorName || argv[1] == "run" && !slices.Contains(argv, "-d") && !slices.Contains(argv, "--detach")
}

// plainNumber writes a number with at most one digit after the point.
func plainNumber(x float64) string { return strconv.FormatFloat(x, 'f', 1, 64) }

// ownerOf is a file's owner.
func ownerOf(fi os.FileInfo) uint32 { return fi.Sys().(*syscall.Stat_t).Uid }

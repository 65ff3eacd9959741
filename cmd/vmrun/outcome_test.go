package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/images"
	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/profiles"
	"github.com/vmrun/vmrun/vm"
)

func TestEndOutcome(t *testing.T) {
	seven, zero := 7, 0
	for _, tt := range []struct {
		name       string
		ending     vm.Ending
		cause      error
		code       int
		by, reason string
	}{
		{"powered off", vm.Ending{Reason: vm.GuestShutdown}, nil, 0, "guest", "guest-shutdown"},
		{"command", vm.Ending{Reason: vm.GuestShutdown, GuestExit: &seven}, nil, 7, "guest", "guest-shutdown"},
		{"panic", vm.Ending{Reason: vm.GuestPanic}, nil, 5, "guest", "guest-panic"},
		{"QEMU died", vm.Ending{QEMU: "signal: killed"}, nil, 4, "qemu", "qemu-died"},
		{"QEMU was signalled", vm.Ending{Reason: vm.HostSignal}, nil, 4, "qemu", "host-signal"},
		{"timeout", vm.Ending{Reason: vm.GuestShutdown, GuestExit: &zero}, errTimeout, 124, "vmrun", "timeout"},
		{"signal", vm.Ending{Reason: vm.GuestShutdown}, signalError{unix.SIGTERM}, 143, "vmrun", "signal"},
		{"escape", vm.Ending{Reason: vm.Killed}, errEscape, 0, "user", "escape"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := endOutcome(tt.ending, tt.cause)
			if got.code != tt.code || got.by != tt.by || got.reason != tt.reason {
				t.Errorf("got %+v", got)
			}
			if code := exitCode(got.err()); code != tt.code {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

func TestPrintError(t *testing.T) {
	lacks := func(need vm.Need, text string) error { return &vm.HostError{Need: need, Err: errors.New(text)} }
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"nothing", nil, ""},
		{"told already", exitError{code: 1}, ""},
		{"plain", errors.New("read x: no"), "vmrun: read x: no\n"},
		{"several lines", errors.New("start QEMU: a\nb"), "vmrun: start QEMU: a\n  b\n"},
		{"usage", usageError{"vmrun run", errors.New("no file")}, "vmrun: no file\nhint: vmrun run --help\n"},
		{"faults", exitError{2, profiles.Faults{{File: "a.toml", Line: 3, Key: "name", Text: "bad"}, {File: "a.toml", Line: 4, Text: "worse"}}},
			"a.toml:3: name: bad\na.toml:4: worse\n"},
		{"hint below a wrapper", exitError{3, fmt.Errorf("launch web: %w", &netsetup.MissingError{Feature: "tun", Reason: "no tun"})},
			"vmrun: launch web: no tun\nhint: modprobe tun; in a container, pass --device /dev/net/tun\n"},
		{"left elsewhere", fmt.Errorf("sweep network lan: %w", &netsetup.ElsewhereError{Namespace: 42, Way: "/run/netns/blue", Journal: "/run/vmrun/nets/lan/journal"}),
			"vmrun: sweep network lan: it was up in another network namespace, net:[42], and what its dead keeper left there is not undone\n" +
				"hint: nsenter --net=/run/netns/blue vmrun gc; VMRUN_RUNTIME_DIR gives this one networks of its own\n"},
		{"up elsewhere", fmt.Errorf("attach to network lan: %w", &netsetup.ElsewhereError{Namespace: 42}),
			"vmrun: attach to network lan: it is up in another network namespace, net:[42]\n" +
				"hint: enter that namespace (lsns --type net tells who is in it); VMRUN_RUNTIME_DIR gives this one networks of its own\n"},
		{"each hint once", exitError{3, errors.Join(lacks(vm.NeedQEMU, "no QEMU"), lacks(vm.NeedPrivilege, "nat"), lacks(vm.NeedPrivilege, "vlan"))},
			"vmrun: no QEMU\nvmrun: nat\nvmrun: vlan\nhint: apt-get install qemu-system-x86\n" +
				"hint: run vmrun with sudo, or use mode user, which needs no privilege, or ask root to open the network: vmrun net up FILE --group GROUP\n"},
		{"not static", exitError{3, fmt.Errorf("launch web: %w", images.ErrNotStatic)},
			"vmrun: launch web: not statically linked\nhint: build vmrun with CGO_ENABLED=0 (make build)\n"},
		{"teardown", exitError{1, errors.Join(errors.New("the guest panicked"), teardownError{errors.New("busy")})},
			"vmrun: the guest panicked\nvmrun: undo launch: busy\nhint: vmrun gc removes what is left\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			printError(&out, tt.err)
			if diff := cmp.Diff(tt.want, out.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestNICLines(t *testing.T) {
	nic := vm.NICStatus{Network: "lan", Mode: "nat", Members: 2, IP: netip.MustParseAddr("10.0.0.9")}
	forward := profiles.Forward{HostAddr: netip.MustParseAddr("127.0.0.1"), HostPort: 8080, GuestPort: 80, Proto: "tcp"}
	want := []string{"joined network lan (2 members), address 10.0.0.9", "forwarding 127.0.0.1:8080/tcp to port 80 of the guest"}
	if diff := cmp.Diff(want, nicLines(nic, []profiles.Forward{forward})); diff != "" {
		t.Error(diff)
	}
	if lines := nicLines(vm.NICStatus{Network: "user", Mode: "user"}, nil); lines != nil {
		t.Errorf("user mode: %q", lines)
	}
}

func TestUntilSignal(t *testing.T) {
	signals := make(chan os.Signal, 1)
	n, s, finished := untilSignal(t.Context(), signals, func(context.Context) int { return 7 })
	if n != 7 || s != 0 || !finished {
		t.Errorf("without a signal: %d, %v, %v", n, s, finished)
	}
	signals <- unix.SIGINT
	cause, s, finished := untilSignal(t.Context(), signals, func(ctx context.Context) error {
		<-ctx.Done()
		return context.Cause(ctx)
	})
	if s != unix.SIGINT || cause != (signalError{unix.SIGINT}) || !finished {
		t.Errorf("signal %v, cause %v, finished %v", s, cause, finished)
	}
	never := make(chan struct{})
	defer close(never)
	signals <- unix.SIGTERM
	_, s, finished = untilSignal(t.Context(), signals, func(ctx context.Context) int {
		<-ctx.Done()
		go func() { // people lose patience; one that comes at once counts as the first
			for {
				select {
				case signals <- unix.SIGINT:
				case <-never:
					return
				}
			}
		}()
		<-never
		return 0
	})
	if s != unix.SIGTERM || finished {
		t.Errorf("a second signal: first %v, finished %v", s, finished)
	}
}

func TestWriteReport(t *testing.T) {
	file := filepath.Join(t.TempDir(), "report.json")
	for range 2 { // the second replaces the first
		if err := writeReport(file, report{Reason: "guest-shutdown"}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if files, _ := os.ReadDir(filepath.Dir(file)); len(files) != 1 {
		t.Errorf("left behind: %v", files)
	}
	// A device is written to, never replaced.
	device := filepath.Join(t.TempDir(), "device")
	if err := os.Symlink("/dev/null", device); err != nil {
		t.Fatal(err)
	}
	if err := writeReport(device, report{}, nil); err != nil {
		t.Error(err)
	}
	if fi, err := os.Lstat(device); err != nil || fi.Mode().Type() != os.ModeSymlink {
		t.Errorf("the device was replaced: %v, %v", fi, err)
	}
}

// A report is written again where more has become known since, and only there.
func TestSaveReport(t *testing.T) {
	file := filepath.Join(t.TempDir(), "report.json")
	r := &runner{options: runOptions{report: file}, reporting: reporting{file: "web.toml", started: time.Now()}}
	end := outcome{by: "guest", reason: "guest-shutdown", vm: "web"}
	r.reportFirst(end)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := r.report(end); err != nil || fileExists(file) {
		t.Errorf("the same again: %v; written: %v", err, fileExists(file))
	}
	end.cause = teardownError{errors.New("busy")}
	r.reportFirst(end)
	if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), "undo launch: busy") {
		t.Errorf("after the teardown it says %s, %v", text, err)
	}
}

func TestShellQuote(t *testing.T) {
	for in, want := range map[string]string{
		"":            "''",
		"-m":          "-m",
		"a=b,c:/d@e":  "a=b,c:/d@e",
		"two words":   "'two words'",
		"it's":        `'it'\''s'`,
		"fd={nic0}":   "'fd={nic0}'",
		"x; rm -rf /": "'x; rm -rf /'",
	} {
		if got := shellQuote(in); got != want {
			t.Errorf("shellQuote(%q) = %s, want %s", in, got, want)
		}
	}
}

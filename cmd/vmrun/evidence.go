package main

import (
	"bytes"
	"context"
	"errors"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/vm"
	"github.com/vmrun/vmrun/vm/control"
)

// evidence is what there is to say of a boot that failed. It is gathered before
// the VM's networks go, and holds up its end for evidencePatience at most.
type evidence struct {
	host vm.Host
	plan *vm.Plan

	diagnosis  *vm.Diagnosis     // nil: nobody has looked
	networks   []netsetup.Report // those that could be asked
	screenshot []byte            // PNG; nil: there is none
}

const evidencePatience = 1500 * time.Millisecond

// look looks at a VM of this process, once.
func (e *evidence) look(instance *vm.Instance) {
	if e.diagnosis != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), evidencePatience)
	defer cancel()
	var all sync.WaitGroup
	all.Go(func() {
		d := instance.Diagnose(ctx)
		e.diagnosis = &d
	})
	all.Go(func() {
		e.lookAround(ctx, func(ctx context.Context) ([]byte, error) {
			picture, err := instance.Screenshot(ctx)
			if err != nil {
				return nil, err
			}
			var file bytes.Buffer
			err = png.Encode(&file, picture)
			return file.Bytes(), err
		})
	})
	all.Wait()
}

// lookFromOutside looks at a VM of another process, whose diagnosis is known.
func (e *evidence) lookFromOutside(m vm.Machine, d *vm.Diagnosis) {
	e.diagnosis = d
	ctx, cancel := context.WithTimeout(context.Background(), evidencePatience)
	defer cancel()
	e.lookAround(ctx, func(ctx context.Context) ([]byte, error) { return control.Screenshot(ctx, m) })
}

// lookAround asks the VM's networks and takes a picture of its screen. What does
// not answer is left out.
func (e *evidence) lookAround(ctx context.Context, picture func(context.Context) ([]byte, error)) {
	var all sync.WaitGroup
	if e.plan.Display != "" {
		all.Go(func() { e.screenshot, _ = picture(ctx) })
	}
	asked := map[string]bool{}
	for _, nic := range e.plan.NICs {
		if nic.Spec == nil || asked[nic.Spec.ID()] {
			continue
		}
		asked[nic.Spec.ID()] = true
		if report, err := netsetup.Inspect(ctx, networkHost(e.host), nic.Spec.ID(), ""); err == nil {
			e.networks = append(e.networks, report)
		}
	}
	all.Wait()
}

// dir is the VM's folder, which has its logs; those of one that is kept have moved
// by its end.
func (e *evidence) dir() string {
	dir := filepath.Join(e.host.Dirs.Runtime, "vms", e.plan.Name)
	if kept := filepath.Join(e.host.Dirs.State, "vms", e.plan.Name); !fileExists(filepath.Join(dir, vm.ConsoleLog)) && fileExists(filepath.Join(kept, vm.ConsoleLog)) {
		return kept
	}
	return dir
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// isFailedBoot tells the ends of which people want to know why: the guest
// panicked, QEMU went, or it was all not done in time.
func isFailedBoot(end outcome) bool {
	if _, asked := errors.AsType[signalError](end.cause); asked || end.cause == nil {
		return false
	}
	// Not by the code, which may be a command's own.
	return slices.Contains([]string{"timeout", "not-ready", "qemu-died", "qemu-start", vm.GuestPanic, vm.GuestReset, vm.HostSignal}, end.reason)
}

// Files of a folder of --report, beside report.json.
const (
	reportFile     = "report.json"
	consoleFile    = "console.txt"
	planFile       = "plan.json"
	symptomsFile   = "symptoms.json"
	networkFile    = "network.json"
	screenshotFile = "screenshot.png"
)

// write writes what there is into a folder, past failures.
func (e *evidence) write(folder string) error {
	var errs []error
	put := func(name string, content []byte) {
		errs = append(errs, replaceFile(filepath.Join(folder, name), writeAll(content)))
	}
	putJSON := func(name string, value any) {
		var text bytes.Buffer
		errs = append(errs, printJSON(&text, value))
		put(name, text.Bytes())
	}
	putJSON(planFile, e.plan)
	if log, err := os.ReadFile(filepath.Join(e.dir(), vm.QEMULog)); err == nil {
		put(vm.QEMULog, log)
	}
	if e.diagnosis != nil {
		var console bytes.Buffer
		for _, line := range e.diagnosis.Console {
			console.WriteString(line + "\n")
		}
		put(consoleFile, console.Bytes())
		putJSON(symptomsFile, e.diagnosis)
		putJSON(networkFile, append([]netsetup.Report{}, e.networks...))
	}
	if e.screenshot != nil {
		put(screenshotFile, e.screenshot)
	}
	return errors.Join(errs...)
}

// What of a diagnosis is shown: with how it ended, ten lines.
const (
	shownCauses  = 3
	shownConsole = 3
	shownWidth   = 240 // characters of a line
)

// shown is what people are told at once of a boot that failed; told is the error
// that they read anyway, and folder where the rest is, if anywhere.
func (e *evidence) shown(told error, folder string) (causes, console []string, rest string) {
	for _, cause := range e.diagnosis.Likely {
		if len(causes) < shownCauses && (told == nil || cause != told.Error()) {
			causes = append(causes, oneLine(cause))
		}
	}
	for _, line := range e.diagnosis.Console[max(0, len(e.diagnosis.Console)-shownConsole):] {
		console = append(console, oneLine(line))
	}
	rest = filepath.Join(e.dir(), vm.ConsoleLog)
	if folder != "" {
		rest = folder
	}
	return causes, console, rest
}

package vm

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmrun/vmrun/images"
	"github.com/vmrun/vmrun/profiles"
)

// What was attached while the machine ran comes back with the snapshot: at its
// place, with its content, to be detached by its name. So do CPUs.
func TestSnapshotAttached(t *testing.T) {
	for _, machine := range []profiles.MachineType{profiles.Q35, profiles.PC} {
		t.Run(string(machine), func(t *testing.T) {
			h, p := realFixture(t)
			disks := p.Disks
			p.Machine.Type, p.Machine.MaxCPUs, p.Disks = machine, 3, nil
			i := launchReal(t, h, realPlan(t, h, p), Options{})
			for _, d := range disks {
				spec := images.DiskSpec{Path: d.Path, Format: images.Format(d.Format), Keep: d.Keep}
				if _, err := i.AttachDisk(t.Context(), spec); err != nil {
					t.Fatal(err)
				}
			}
			if err := i.SetCPUs(t.Context(), 2); err != nil {
				t.Fatal(err)
			}
			scribbleOn(t, i, hotNodes, 1)
			was := attachedState(t, i)
			s, err := i.Save(t.Context(), "one")
			if err != nil {
				t.Fatal(err)
			}
			scribbleOn(t, i, hotNodes, 2)
			if err := i.Close(); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				restored := restore(t, h, p.Name, "one")
				if diff := cmp.Diff(was, attachedState(t, restored)); diff != "" {
					t.Errorf("the restored machine is another:\n%s", diff)
				}
				checkScribbleOn(t, restored, hotNodes, 1)
				scribbleOn(t, restored, hotNodes, 3)
				if err := restored.Close(); err != nil {
					t.Error(err)
				}
			}
			checkGoneDisk(t, h, s, disks[1].Path)
		})
	}
}

// A device is recorded from the moment that it is there, also while firmware has not
// yet given the bridge that it is behind a bus: after a reset, or before the start.
func TestSnapshotAttachedEarly(t *testing.T) {
	h, p := realFixture(t)
	i := launchReal(t, h, realPlan(t, h, p), Options{Paused: true})
	d, err := i.AttachDisk(t.Context(), images.DiskSpec{Path: p.Disks[0].Path, Format: images.FormatRaw})
	if err != nil {
		t.Fatal(err)
	}
	s, err := i.Save(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Devices) != 1 || s.Devices[0].ID != d.ID {
		t.Errorf("the snapshot has %+v of %+v", s.Devices, d)
	}
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	restored := restore(t, h, p.Name, "one")
	if diff := cmp.Diff([]Attachment{d}, restored.Attachments()); diff != "" {
		t.Errorf("attached is now:\n%s", diff)
	}
}

// attachedState is what a machine has that it was not launched with.
func attachedState(t *testing.T, i *Instance) (all []string) {
	t.Helper()
	for _, a := range i.Attachments() {
		all = append(all, fmt.Sprint(a))
	}
	places, err := i.places(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for id, addr := range places {
		all = append(all, id+" at "+addr)
	}
	r, err := i.Resources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return append(append(all, fmt.Sprint(r)), nodes(t, i)...)
}

// checkGoneDisk has a snapshot refused whose attached disk is not there any more.
func checkGoneDisk(t *testing.T, h Host, s *Snapshot, path string) {
	t.Helper()
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	_, err := s.RestorePlan(t.Context(), h)
	if lack, ok := errors.AsType[*HostError](err); !ok || lack.Need != NeedFile || !strings.Contains(err.Error(), path) {
		t.Errorf("with its disk gone: %v", err)
	}
}

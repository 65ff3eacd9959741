package vm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/vmrun/vmrun/netsetup"
)

// Phase is where a virtual machine is in its life.
type Phase string

const (
	Starting Phase = "starting" // being launched
	Running  Phase = "running"  //
	Paused   Phase = "paused"   // its guest stands still
	Stopping Phase = "stopping" // the guest has ended, or was asked to
	Frozen   Phase = "frozen"   // its QEMU was stopped by a signal
	Dead     Phase = "dead"     // whoever launched it is gone without a word, and QEMU with it
	Ended    Phase = "ended"    // its state was kept
)

// Predicate is what a sentence about a machine in the phase ends with.
func (p Phase) Predicate() string {
	if p == Ended {
		return "has ended"
	}
	return "is " + string(p)
}

// State is what a machine's state.json says of it.
type State struct {
	Version    int         `json:"version"`
	Name       string      `json:"name"`
	Profile    string      `json:"profile"` // path
	Phase      Phase       `json:"phase"`   // as the supervisor sees it
	Supervisor int         `json:"supervisor"`
	QEMU       int         `json:"qemu,omitempty"` // process id
	Accel      string      `json:"accel,omitempty"`
	Started    time.Time   `json:"started"`
	NICs       []NICStatus `json:"nics,omitempty"`     // of the profile, in its order
	Attached   []NICStatus `json:"attached,omitempty"` // that came later and are there
	Keep       bool        `json:"keep,omitempty"`     // this file outlives the machine
	Plan       *Plan       `json:"plan,omitempty"`
	End        *End        `json:"end,omitempty"` // nil: it has not ended
}

// Cards are all network cards that a machine has, those of its profile first, and
// each with its ID.
func (s State) Cards() []NICStatus {
	all := slices.Clone(s.NICs)
	for i := range all {
		all[i].ID = "nic" + strconv.Itoa(i)
	}
	return append(all, s.Attached...)
}

// Networks are those that a machine has cards on, but for those of mode user; one
// with several of the cards is there several times.
func (s State) Networks() []netsetup.Spec {
	if s.Plan == nil {
		return nil
	}
	var all []netsetup.Spec
	for _, nic := range s.Plan.NICs {
		if nic.Spec != nil {
			all = append(all, *nic.Spec)
		}
	}
	for _, card := range s.Attached {
		if n, ok := s.Plan.network(card.Network); ok {
			all = append(all, networkSpec(n))
		}
	}
	return all
}

// End is how a machine that is kept has ended.
type End struct {
	Ending Ending    `json:"ending"`
	Code   int       `json:"code"`             // of the run
	By     string    `json:"by,omitempty"`     // whose code that is; "": nobody has said, as with Reason
	Reason string    `json:"reason,omitempty"` // the run's word for it
	Time   time.Time `json:"time"`
	Error  string    `json:"error,omitempty"`
}

const (
	stateVersion = 2
	stateFile    = "state.json"
	newSuffix    = ".new" // of a state while it is written

	// SocketFile is the control socket's name in a machine's folder.
	SocketFile = "ctl.sock"
	lockFile   = "lock"
)

// readState reads a state.json. One that a newer vmrun wrote is refused; that of
// version 1 lacks what came later.
func readState(path string) (State, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return State{}, err
	}
	var version struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &version); err != nil {
		return State{}, fmt.Errorf("read %s: %w", path, err)
	}
	if version.Version < 1 || version.Version > stateVersion {
		return State{}, fmt.Errorf("read %s: it is of another version of vmrun (its format is %d, ours %d)", path, version.Version, stateVersion)
	}
	var s State
	if err := json.Unmarshal(data, &s); err != nil {
		return State{}, fmt.Errorf("read %s: %w", path, err)
	}
	if s.Phase == "" {
		s.Phase = Running // of version 1, which was written for those alone
	}
	return s, nil
}

// writeState writes a state.json, in one piece.
func writeState(path string, s State) error {
	s.Version = stateVersion
	data, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	temporary := path + newSuffix
	if err := os.WriteFile(temporary, append(data, '\n'), 0o600); err != nil {
		return errors.Join(fmt.Errorf("write state: %w", err), removeIfThere(temporary))
	}
	if err := os.Rename(temporary, path); err != nil {
		return errors.Join(fmt.Errorf("write state: %w", err), removeIfThere(temporary))
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// record is a running machine's state.json. It may be used by several
// goroutines.
type record struct {
	path string

	mu    sync.Mutex
	state State
	gone  bool
}

// update changes the state, in the file as well.
func (r *record) update(change func(*State)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.state)
	if r.gone {
		return nil
	}
	return writeState(r.path, r.state)
}

// get is the state at present.
func (r *record) get() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.state
	s.NICs, s.Attached = slices.Clone(s.NICs), slices.Clone(s.Attached)
	return s
}

// remove removes the file for good.
func (r *record) remove() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone = true
	return errors.Join(removeIfThere(r.path), removeIfThere(r.path+newSuffix))
}

// vmsFolder is where the folders of machines are, below one of vmrun's.
func vmsFolder(root string) string { return filepath.Join(root, "vms") }

package netsetup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// holdMark says who holds a network. It outlives the network's keeper, and is
// written and removed only under the network's lock: a holder that comes back
// after a keeper's death is taken only with its mark, so that what was told to
// go down while the holder was on its way stays down.
type holdMark struct {
	ID       string    `json:"id"`                 // of the holdRequest
	Since    time.Time `json:"since,omitzero"`     // when it was granted first; zero: unknown
	Draining bool      `json:"draining,omitempty"` // the network goes with its last member
}

// holdName is the file of a holdMark in the network's folder.
const holdName = "hold.json"

// loadHold reads the mark; nil where nobody holds the network.
func loadHold(dir string) (*holdMark, error) {
	text, err := os.ReadFile(filepath.Join(dir, holdName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read who holds the network: %w", err)
	}
	m := new(holdMark)
	if json.Unmarshal(text, m) != nil || m.ID == "" {
		return nil, nil // foreign: no holder has it
	}
	return m, nil
}

func (m holdMark) save(dir string) error {
	text, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode who holds the network: %w", err)
	}
	return writeFile(filepath.Join(dir, holdName), text)
}

func removeHold(dir string) error { return removeWritten(filepath.Join(dir, holdName)) }

// drainHold lets the hold end with the network; it tells whether there was one
// that did not know.
func drainHold(dir string) (bool, error) {
	m, err := loadHold(dir)
	if m == nil || m.Draining || err != nil {
		return false, err
	}
	m.Draining = true
	return true, m.save(dir)
}

// settleHold ends a hold that was to go with the network, or whose holder is dead,
// once the network is undone.
func settleHold(dir string) error {
	m, err := loadHold(dir)
	if m == nil || err != nil {
		return err
	}
	over := m.Draining
	if !over {
		over, err = holderDead(dir)
	}
	if !over || err != nil {
		return err
	}
	return removeHold(dir)
}

// holdLockName is the file that each holder has locked, shared, from before it
// asks for the hold until its end: the mark of one that is only on its way to the
// next keeper is told by it from a dead one's.
const holdLockName = "hold.lock"

func lockHold(dir string) (*os.File, error) {
	return lockFile(filepath.Join(dir, holdLockName), unix.LOCK_SH)
}

// holderDead tells whether the network's mark is that of a holder that has died.
// The caller holds the network's lock, without which nobody becomes its holder.
func holderDead(dir string) (bool, error) {
	lock, err := lockFile(filepath.Join(dir, holdLockName), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, lock.Close()
}

// drainDead is drainHold for a network without keeper. Where one lives after
// all, alive is set and nothing done.
func drainDead(ctx context.Context, dir string) (held, alive bool, err error) {
	if m, err := loadHold(dir); m == nil {
		return false, false, err
	}
	lock, err := lockDead(ctx, dir)
	if lock == nil || err != nil {
		return false, err == nil, err
	}
	defer lock.Close()
	held, err = drainHold(dir)
	if err != nil || hasJournal(dir) {
		return held, false, err
	}
	dead, err := holderDead(dir) // somebody who only asked may have kept its mark
	return held && !dead, false, errors.Join(err, settleHold(dir))
}

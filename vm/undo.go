package vm

import (
	"errors"
	"slices"
)

// undo is what a launch has to take back.
type undo []func() error

func (u *undo) push(f func() error) { *u = append(*u, f) }

// run takes everything back, newest first and past failures.
func (u *undo) run() error {
	var errs []error
	for _, f := range slices.Backward(*u) {
		errs = append(errs, f())
	}
	*u = nil
	return errors.Join(errs...)
}

package qmp

import (
	"errors"
	"fmt"
)

// ErrClosed says that the connection to QEMU has ended: QEMU went away, wrote
// something that is not QMP, or the client was closed. Every command that was
// pending then, and every later one, returns an error that wraps it together
// with the cause: io.EOF where QEMU hung up, net.ErrClosed after Close.
var ErrClosed = errors.New("connection to QEMU ended")

// Error is QEMU's refusal of a command. It comes as a *Error:
//
//	var refused *qmp.Error
//	if errors.As(err, &refused) && refused.Class == "DeviceNotFound" { … }
type Error struct {
	// Command is the refused command's name.
	Command string
	// Class is what a program may test for: GenericError, CommandNotFound,
	// DeviceNotActive, DeviceNotFound or KVMMissingCap, as listed by QEMU's
	// qapi/error.json.
	Class string
	// Desc is for people; QEMU changes it between versions.
	Desc string
}

func (e *Error) Error() string {
	return fmt.Sprintf("run %s: %s: %s", e.Command, e.Class, e.Desc)
}

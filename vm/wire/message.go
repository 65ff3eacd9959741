package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// request is what a client says first.
type request struct {
	Protocol int             `json:"protocol"`
	Verb     string          `json:"verb"`
	Args     json.RawMessage `json:"args,omitempty"`
	// Timeout bounds the server's work, in nanoseconds; 0: it may take for ever.
	Timeout time.Duration `json:"timeout_ns,omitempty"`
}

// reply is what the server says last. One of Error and Result is set.
type reply struct {
	Protocol int             `json:"protocol"`
	Error    *Refusal        `json:"error,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
}

// Kind of a refusal, for programs.
type Kind string

const (
	KindFailed   Kind = "failed"   // tried, and not done
	KindState    Kind = "state"    // the machine is not in a state for it
	KindEnded    Kind = "ended"    // the machine has ended
	KindUsage    Kind = "usage"    // the request makes no sense
	KindUnknown  Kind = "unknown"  // no such verb
	KindVersion  Kind = "version"  // another protocol version
	KindDeadline Kind = "deadline" // not done in time
	KindDenied   Kind = "denied"   // the caller may not
	KindUnmet    Kind = "unmet"    // what was waited for can't happen any more
)

// Refusal is an error of the other side.
type Refusal struct {
	Kind  Kind   `json:"kind"`
	Text  string `json:"text"`
	Class string `json:"class,omitempty"` // of QEMU's error, where it is one
	// Data is more of it, as the verb has it.
	Data json.RawMessage `json:"data,omitempty"`
}

func (r *Refusal) Error() string { return r.Text }

// Refuse makes a refusal.
func Refuse(k Kind, format string, args ...any) error {
	return &Refusal{Kind: k, Text: fmt.Sprintf(format, args...)}
}

// newRefusal carries an error to the other side.
func newRefusal(err error) *Refusal {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return &Refusal{Kind: r.Kind, Text: err.Error(), Class: r.Class, Data: r.Data}
	}
	return &Refusal{Kind: KindFailed, Text: err.Error()}
}

// VersionError says that the two sides are of different versions.
type VersionError struct{ Ours, Theirs int }

func (e *VersionError) Error() string {
	return fmt.Sprintf("it runs under another version of vmrun (its control protocol is %d, ours %d)", e.Theirs, e.Ours)
}

// protocolOf is the version that a first packet names.
func protocolOf(data []byte) (int, error) {
	var v struct {
		Protocol int `json:"protocol"`
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return v.Protocol, nil
}

// strictly decodes JSON and refuses what it does not know.
func strictly(data []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

package qmp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

func TestLineReader(t *testing.T) {
	const limit = 100_000
	fits, tooLong := strings.Repeat("x", limit-1)+"\n", strings.Repeat("x", limit)+"\n"
	tests := []struct {
		name, input string
		lines       []string
		end         error // nil: any other error
	}{
		{"nothing", "", nil, io.EOF},
		{"two lines", "a\r\nb\n", []string{"a\r\n", "b\n"}, io.EOF},
		{"half a line", "a\nb", []string{"a\n"}, io.ErrUnexpectedEOF},
		{"as long as may be", fits + fits, []string{fits, fits}, io.EOF},
		{"too long", tooLong, nil, nil},
		{"too long without end", tooLong[:limit] + tooLong, nil, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := newLineReader(strings.NewReader(test.input), limit)
			var lines []string
			line, err := r.next()
			for ; err == nil; line, err = r.next() {
				lines = append(lines, string(line))
			}
			if !slices.Equal(lines, test.lines) {
				t.Errorf("got %d lines, want %d", len(lines), len(test.lines))
			}
			if test.end != nil && !errors.Is(err, test.end) || test.end == nil && !strings.Contains(err.Error(), "longer than 100000 bytes") {
				t.Errorf("ended by %v", err)
			}
		})
	}
}

// FuzzReceive feeds a client with two pending commands and a subscriber. What
// they get must not depend on how the bytes are cut, each of them must come to
// an end, and no more may come out than went in.
func FuzzReceive(f *testing.F) {
	for _, seed := range []string{
		"",
		hello,
		hello + "\r\n",
		hello + "\r\n" + `{"return": {}, "id": 1}` + "\r\n" + `{"id": 2, "error": {"class": "GenericError", "desc": "no"}}` + "\r\n",
		hello + "\n" + `{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}` + "\n" + `{"return": [1], "id": 2}` + "\n",
		hello + "\n" + `{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}` + "\n" + `{"ret`,
		hello + "\n" + `{"return": null, "id": "2"}` + "\n" + `{"error": {}}` + "\n" + `{"error": {}, "id": null}` + "\n",
		hello + "\n" + `{"return": 1, "id": 18446744073709551616}` + "\n" + `{"return": 1, "id": -1}` + "\n" + `{"return": 1, "id": 1.0}` + "\n",
		hello + "\n" + `{"event": "X", "timestamp": {"seconds": 9223372036854775807, "microseconds": 9223372036854775807}}` + "\n",
		hello + "\n" + hello + "\n",
		`{"event": "STOP"}` + "\n",
		"\x00\xff\n",
		hello + "\n" + strings.Repeat("[", 20000) + "\n",
		hello + "\n" + `{"event": "BIG", "data": "` + strings.Repeat("x", 70000) + `"}` + "\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		whole := play(t, bytes.NewReader(data))
		pieces := play(t, iotest.OneByteReader(bytes.NewReader(data)))
		if diff := cmp.Diff(whole, pieces); diff != "" {
			t.Errorf("cut into pieces it means something else:\n%s", diff)
		}
		if lines := bytes.Count(data, []byte("\n")); len(whole.Replies)+len(whole.Events) > lines {
			t.Errorf("%d lines gave %d replies and %d events", lines, len(whole.Replies), len(whole.Events))
		}
	})
}

// outcome is what a client makes of bytes.
type outcome struct {
	Err     string
	Replies map[uint64]string
	Events  []Event
}

// play lets a client read r to its end.
func play(t *testing.T, r io.Reader) outcome {
	ours, theirs := socketpair(t)
	defer theirs.Close()
	c := newClient(unixConn(t, ours))
	defer c.Close()
	replies := make(map[uint64]<-chan message)
	for range 2 {
		id, reply, err := c.register()
		wantNil(t, err)
		replies[id] = reply
	}
	events, _ := c.Subscribe()

	c.fail(c.receive(newLineReader(r, 1<<20)))
	<-c.Done()
	if !errors.Is(c.Err(), ErrClosed) {
		t.Errorf("ended by %v", c.Err())
	}
	o := outcome{Err: c.Err().Error(), Replies: make(map[uint64]string)}
	for id, reply := range replies {
		m, err := c.await(t.Context(), reply)
		switch {
		case err == nil && m.Error != nil:
			o.Replies[id] = fmt.Sprint(*m.Error)
		case err == nil:
			o.Replies[id] = string(m.Return)
			if !json.Valid(m.Return) {
				t.Errorf("reply %q is no JSON", m.Return)
			}
		case !errors.Is(err, ErrClosed):
			t.Errorf("command %d: %v", id, err)
		}
	}
	for e := range events {
		o.Events = append(o.Events, e)
	}
	return o
}

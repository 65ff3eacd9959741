package qmp

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
)

// maxLine is the longest line that is accepted from QEMU. The longest known
// reply, query-qmp-schema's, has some 200 KiB; what is longer than this comes
// from something that isn't QEMU, or from one gone mad.
const maxLine = 64 << 20

// request is a command on its way to QEMU. Its ids count up in the order in
// which the commands are written.
type request struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments,omitempty"`
	ID        uint64          `json:"id"`
}

// message is any line that QEMU writes: the greeting, a reply or an event.
type message struct {
	Greeting  *greeting       `json:"QMP"`
	Return    json.RawMessage `json:"return"`
	Error     *refusal        `json:"error"`
	ID        json.RawMessage `json:"id"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp *timestamp      `json:"timestamp"`
}

type greeting struct {
	Version struct {
		QEMU struct {
			Major int `json:"major"`
			Minor int `json:"minor"`
			Micro int `json:"micro"`
		} `json:"qemu"`
		Package string `json:"package"`
	} `json:"version"`
}

type refusal struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

type timestamp struct {
	Seconds      int64 `json:"seconds"`
	Microseconds int64 `json:"microseconds"`
}

// parse turns a line into a message and refuses what is none of the three.
func parse(line []byte) (message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return message{}, fmt.Errorf("parse line %.80q: %w", line, err)
	}
	if m.Greeting == nil && m.Event == "" && !m.isReply() {
		return message{}, fmt.Errorf("parse line %.80q: neither greeting nor reply nor event", line)
	}
	return m, nil
}

func (m message) isReply() bool { return m.Return != nil || m.Error != nil }

// hasID tells whether the reply names a command, ours or not.
func (m message) hasID() bool { return m.ID != nil && string(m.ID) != "null" }

// id is the number of the command that a reply answers, 0 if it is none of
// ours: we start counting at 1.
func (m message) id() uint64 {
	id, err := strconv.ParseUint(string(m.ID), 10, 64)
	if err != nil {
		return 0
	}
	return id
}

func (m message) event() Event {
	return Event{Name: m.Event, Data: m.Data, Time: m.Timestamp.time()}
}

// time is the zero time where QEMU gave none; it sends -1 where the host's
// clock could not be read.
func (t *timestamp) time() time.Time {
	if t == nil || t.Seconds < 0 || t.Microseconds < 0 {
		return time.Time{}
	}
	return time.Unix(t.Seconds, 0).Add(time.Duration(t.Microseconds) * time.Microsecond)
}

// lineReader cuts QEMU's stream into lines.
type lineReader struct {
	r     *bufio.Reader
	limit int // bytes, with the line's end
}

func newLineReader(r io.Reader, limit int) *lineReader {
	return &lineReader{r: bufio.NewReaderSize(r, 64<<10), limit: limit}
}

// next returns the next line, valid until the following call. A line that is
// cut off by the stream's end is io.ErrUnexpectedEOF.
func (l *lineReader) next() ([]byte, error) {
	var long []byte
	for {
		part, err := l.r.ReadSlice('\n')
		if len(long)+len(part) > l.limit {
			return nil, fmt.Errorf("read line: longer than %d bytes", l.limit)
		}
		if err == nil && long == nil {
			return part, nil
		}
		long = append(long, part...)
		switch {
		case err == nil:
			return long, nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(long) > 0:
			return nil, fmt.Errorf("read line: %w after %d bytes", io.ErrUnexpectedEOF, len(long))
		default:
			return nil, err
		}
	}
}

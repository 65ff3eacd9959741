package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const hello = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2"}, "capabilities": ["oob"]}}`

// fakeQEMU is the other end of a client's connection. The test itself plays
// QEMU, line by line.
type fakeQEMU struct {
	t     *testing.T
	conn  *net.UnixConn
	lines *bufio.Reader
	files []*os.File // received and not yet taken
}

// newFake returns a fake and the client's end of the connection to it.
func newFake(t *testing.T) (*fakeQEMU, *net.UnixConn) {
	t.Helper()
	ours, theirs := socketpair(t)
	f := &fakeQEMU{t: t, conn: unixConn(t, theirs)}
	f.lines = bufio.NewReader(f)
	f.conn.SetDeadline(time.Now().Add(20 * time.Second)) // rather an error than a test that hangs
	t.Cleanup(f.hangUp)
	return f, unixConn(t, ours)
}

// connect returns a negotiated client and the fake that it talks to.
func connect(t *testing.T) (*Client, *fakeQEMU) {
	t.Helper()
	f, conn := newFake(t)
	f.send(hello)
	var c *Client
	made := start(func() (err error) { c, err = NewClient(t.Context(), conn); return err })
	f.reply(f.expect("qmp_capabilities"), "{}")
	wantNil(t, <-made)
	t.Cleanup(func() { c.Close() })
	return c, f
}

func socketpair(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
}

func unixConn(t *testing.T, f *os.File) *net.UnixConn {
	t.Helper()
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return conn.(*net.UnixConn)
}

// start runs f beside the test, which meanwhile plays QEMU.
func start(f func() error) <-chan error {
	result := make(chan error, 1)
	go func() { result <- f() }()
	return result
}

// run starts a command without arguments.
func run(ctx context.Context, c *Client, command string) <-chan error {
	return start(func() error { return c.Run(ctx, command, nil, nil) })
}

// Read collects the files that come along with the bytes.
func (f *fakeQEMU) Read(p []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4*16))
	n, oobn, _, _, err := f.conn.ReadMsgUnix(p, oob)
	switch {
	case errors.Is(err, io.EOF):
		return 0, io.EOF
	case err != nil:
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return n, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return n, err
		}
		for _, fd := range fds {
			f.files = append(f.files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return n, nil
}

// command is a request as QEMU sees it.
type command struct {
	Execute   string
	Arguments json.RawMessage
	ID        json.RawMessage
}

func (f *fakeQEMU) next() command {
	f.t.Helper()
	line, err := f.lines.ReadBytes('\n')
	if err != nil {
		f.t.Fatalf("QEMU's side: %v after %.80q", err, line)
	}
	var cmd command
	if err := json.Unmarshal(line, &cmd); err != nil {
		f.t.Fatalf("QEMU's side: %.80q: %v", line, err)
	}
	return cmd
}

func (f *fakeQEMU) expect(name string) command {
	f.t.Helper()
	cmd := f.next()
	if cmd.Execute != name {
		f.t.Fatalf("QEMU's side got %q, want %q", cmd.Execute, name)
	}
	return cmd
}

func (f *fakeQEMU) write(text string) {
	f.t.Helper()
	if _, err := f.conn.Write([]byte(text)); err != nil {
		f.t.Fatalf("QEMU's side: %v", err)
	}
}

func (f *fakeQEMU) send(line string) { f.t.Helper(); f.write(line + "\r\n") }

func (f *fakeQEMU) reply(cmd command, result string) {
	f.t.Helper()
	f.send(fmt.Sprintf(`{"return": %s, "id": %s}`, result, cmd.ID))
}

func (f *fakeQEMU) event(name string, n int) {
	f.t.Helper()
	f.send(fmt.Sprintf(`{"timestamp": {"seconds": 1700000000, "microseconds": 250000}, "event": %q, "data": {"n": %d}}`, name, n))
}

func (f *fakeQEMU) hangUp() {
	f.conn.Close()
	for _, file := range f.files {
		file.Close()
	}
	f.files = nil
}

func wantNil(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

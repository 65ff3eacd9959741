package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const socket = "ctl.sock"

// verbs are requests of all kinds that the protocol knows.
var verbs = map[string]Handler{
	"echo": func(_ context.Context, c *Call) (any, error) {
		var args struct{ Text string }
		if err := c.Decode(&args); err != nil {
			return nil, err
		}
		return args.Text, nil
	},
	"fail": func(context.Context, *Call) (any, error) { return nil, errors.New("it did not work") },
	"hang": func(ctx context.Context, _ *Call) (any, error) {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	},
	"big": func(context.Context, *Call) (any, error) { return strings.Repeat("x", 5*window), nil },
	"cat": func(_ context.Context, c *Call) (any, error) {
		s, err := c.Start()
		if err != nil {
			return nil, err
		}
		n, err := copyBytes(s.Writer(Stdout), s.Receive)
		return n, err
	},
	"flood": func(ctx context.Context, c *Call) (any, error) {
		s, err := c.Start()
		for err == nil {
			_, err = s.Writer(Stdout).Write(make([]byte, maxPayload))
		}
		return nil, err
	},
	// files reads the file that came along and sends one with its reply.
	"files": func(_ context.Context, c *Call) (any, error) {
		if len(c.Files) != 1 {
			return nil, fmt.Errorf("got %d files", len(c.Files))
		}
		text, err := io.ReadAll(c.Files[0])
		if err != nil {
			return nil, err
		}
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(w, "reply to %s", text)
		return WithFiles{Result: len(text), Files: []*os.File{r}}, w.Close()
	},
}

// copyBytes copies stdin until its end.
func copyBytes(w io.Writer, receive func() (Packet, error)) (int, error) {
	for n := 0; ; {
		p, err := receive()
		if err != nil || p.End {
			return n, err
		}
		if _, err := w.Write(p.Data); err != nil {
			return n, err
		}
		n += len(p.Data)
	}
}

// serve serves verbs in a folder whose path is longer than a socket's may be.
func serve(t *testing.T) Client {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep", 40))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(dir, socket)
	if err != nil {
		t.Fatal(err)
	}
	s := Serve(l, verbs, uint32(os.Geteuid()), slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		s.Close(0)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return Client{Dir: dir, Name: socket}
}

func echo(t *testing.T, c Client, text string) {
	t.Helper()
	var got string
	if _, err := c.Do(t.Context(), Request{Verb: "echo", Args: map[string]string{"Text": text}, Timeout: time.Minute}, &got); err != nil || got != text {
		t.Fatalf("echo gave %.40q, %v", got, err)
	}
}

func TestRequest(t *testing.T) {
	c := serve(t)
	echo(t, c, "hello")
	echo(t, c, strings.Repeat("long ", maxRequest/10))
	var big string
	if _, err := c.Do(t.Context(), Request{Verb: "big"}, &big); err != nil || len(big) != 5*window {
		t.Errorf("a long reply has %d bytes, %v", len(big), err)
	}
	if fi, err := os.Stat(filepath.Join(c.Dir, socket)); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v, %v", fi.Mode(), err)
	}
}

func TestRefusals(t *testing.T) {
	c := serve(t)
	for name, test := range map[string]struct {
		request Request
		kind    Kind
		text    string
	}{
		"failed":    {Request{Verb: "fail"}, KindFailed, "it did not work"},
		"unknown":   {Request{Verb: "nonsense"}, KindUnknown, `no such request: "nonsense"`},
		"deadline":  {Request{Verb: "hang", Timeout: time.Millisecond}, KindDeadline, "not done within 1ms"},
		"arguments": {Request{Verb: "echo", Args: map[string]int{"txt": 1}}, KindUsage, "unknown field"},
		"too long":  {Request{Verb: "echo", Args: map[string]string{"Text": strings.Repeat("x", 2*maxRequest)}}, KindUsage, "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.Do(t.Context(), test.request, nil)
			refused, ok := errors.AsType[*Refusal](err)
			if !ok || refused.Kind != test.kind || !strings.Contains(refused.Text, test.text) {
				t.Errorf("got %#v, want kind %s and %q", err, test.kind, test.text)
			}
		})
	}
}

// A stream carries more than a window in both directions at once.
func TestStream(t *testing.T) {
	c := serve(t)
	s, err := c.Open(t.Context(), Request{Verb: "cat"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want := bytes.Repeat([]byte("0123456789"), window)
	go func() {
		w := s.Writer(Stdin)
		w.Write(want)
		w.Close()
	}()
	var got bytes.Buffer
	for {
		p, err := s.Receive()
		if done, ok := errors.AsType[*Done](err); ok {
			var n int
			if err := done.Decode(&n); err != nil || n != len(want) || done.Err != nil {
				t.Errorf("the reply is %d, %v, %v", n, err, done.Err)
			}
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got.Write(p.Data)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d bytes came back of %d", got.Len(), len(want))
	}
}

func TestFiles(t *testing.T) {
	c := serve(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fmt.Fprint(w, "a file")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var n int
	files, err := c.Do(t.Context(), Request{Verb: "files", Files: []*os.File{r}}, &n)
	if err != nil || n != len("a file") || len(files) != 1 {
		t.Fatalf("got %d, %d files, %v", n, len(files), err)
	}
	defer files[0].Close()
	if text, err := io.ReadAll(files[0]); err != nil || string(text) != "reply to a file" {
		t.Errorf("the file holds %q, %v", text, err)
	}
	flags, err := unix.FcntlInt(files[0].Fd(), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("the file would be inherited: flags %#x, %v", flags, err)
	}
}

func TestManyClients(t *testing.T) {
	c := serve(t)
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			var got string
			want := fmt.Sprint(i)
			_, err := c.Do(t.Context(), Request{Verb: "echo", Args: map[string]string{"Text": want}}, &got)
			if err != nil || got != want {
				t.Errorf("client %d got %q, %v", i, got, err)
			}
		})
	}
	all.Wait()
}

// Both sides name both versions.
func TestVersions(t *testing.T) {
	c := serve(t)
	conn := raw(t, c)
	if _, err := conn.Write([]byte(`q{"protocol":7,"verb":"echo","something":"new"}`)); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(conn)
	if want := "control protocol is 1, yours is 7"; err != nil || !bytes.Contains(text, []byte(want)) {
		t.Errorf("the server says %q, %v; want %q", text, err, want)
	}

	dir := t.TempDir()
	l, err := Listen(dir, socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.AcceptUnix()
		if err == nil {
			conn.Write([]byte(`r{"protocol":9,"novelty":[]}`))
			io.Copy(io.Discard, conn)
			conn.Close()
		}
	}()
	_, err = Client{dir, socket}.Do(t.Context(), Request{Verb: "echo"}, nil)
	if v, ok := errors.AsType[*VersionError](err); !ok || v.Ours != Version || v.Theirs != 9 {
		t.Errorf("the client says %v", err)
	}
}

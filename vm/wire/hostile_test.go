package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// raw connects without the protocol.
func raw(t *testing.T, c Client) *net.UnixConn {
	t.Helper()
	conn, err := Dial(t.Context(), c.Dir, c.Name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// Whatever a client does, the others are served.
func TestHostileClients(t *testing.T) {
	c := serve(t)
	request := func(verb string) string {
		return fmt.Sprintf(`q{"protocol":%d,"verb":%q}`, Version, verb)
	}
	for name, packets := range map[string][]string{
		"garbage":         {"\x00\x01\x02"},
		"not JSON":        {"q{"},
		"half a request":  {string([]byte{byte(kindRequest | more)}) + `{"protocol":`},
		"other kind":      {`m{}`},
		"two requests":    {request("hang"), request("hang")},
		"a reply":         {request("hang"), `r{}`},
		"no channel":      {request("cat"), "d"},
		"message channel": {request("cat"), "d\x00x"},
		"a bad count":     {request("cat"), "a1"},
		"unknown field":   {`q{"protocol":1,"verb":"echo","more":1}`},
	} {
		t.Run(name, func(t *testing.T) {
			conn := raw(t, c)
			for _, p := range packets {
				if _, err := conn.Write([]byte(p)); err != nil {
					t.Fatal(err)
				}
			}
			if name != "half a request" && name != "no channel" && name != "message channel" {
				// The server says no or hangs up.
				io.Copy(io.Discard, conn)
			}
			echo(t, c, "still there")
		})
	}
}

// A client that sends more than a window without being read is dropped.
func TestWindowIsKept(t *testing.T) {
	c := serve(t)
	conn := raw(t, c)
	if _, err := fmt.Fprintf(conn, `q{"protocol":%d,"verb":"hang"}`, Version); err != nil {
		t.Fatal(err)
	}
	data := append([]byte{byte(kindData), byte(Stdin)}, make([]byte, maxPayload-1)...)
	for err := error(nil); err == nil; {
		_, err = conn.Write(data)
	}
}

// A reader that takes nothing holds up neither others nor the server's end.
func TestSlowReader(t *testing.T) {
	c := serve(t)
	for range 3 {
		conn := raw(t, c)
		if _, err := fmt.Fprintf(conn, `q{"protocol":%d,"verb":"flood"}`, Version); err != nil {
			t.Fatal(err)
		}
	}
	echo(t, c, "hello")
}

// The handler learns that its client is gone, whatever it is doing.
func TestClientGone(t *testing.T) {
	dir := t.TempDir()
	l, err := Listen(dir, socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	gone := make(chan error, 1)
	s := Serve(l, map[string]Handler{"wait": func(ctx context.Context, _ *Call) (any, error) {
		<-ctx.Done()
		gone <- context.Cause(ctx)
		return nil, nil
	}}, uint32(os.Geteuid()), slog.New(slog.DiscardHandler))
	defer s.Close(0)
	stream, err := Client{dir, socket}.Open(t.Context(), Request{Verb: "wait"})
	if err != nil {
		t.Fatal(err)
	}
	stream.Close()
	if err := <-gone; !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the handler was told %v", err)
	}
}

// Another user's requests are refused. Root may ask anybody's.
func TestMayAsk(t *testing.T) {
	for _, test := range []struct {
		uid, owner uint32
		want       bool
	}{{1000, 1000, true}, {0, 1000, true}, {1001, 1000, false}, {1000, 0, false}} {
		if got := mayAsk(test.uid, test.owner); got != test.want {
			t.Errorf("user %d may ask user %d's: %v", test.uid, test.owner, got)
		}
	}
}

// FuzzServer sends any packets as a client.
func FuzzServer(f *testing.F) {
	for _, seed := range []string{
		`q{"protocol":1,"verb":"echo","args":{"Text":"x"}}`, `q{"protocol":1,"verb":"cat"}` + "\n" + "d\x01abc\ne\x01",
		"q", "\xf1{", "a\x00\x00\x00\x01", `q{"protocol":1,"verb":"hang","timeout_ns":1}`, `q{"protocol":99999999999999999999}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		client, server := conn(t, fds[0]), conn(t, fds[1])
		s := &Server{verbs: verbs, owner: uint32(os.Geteuid()), log: slog.New(slog.DiscardHandler), asking: t.Context(), ctx: t.Context()}
		done := make(chan struct{})
		go func() {
			s.serve(server)
			close(done)
		}()
		for p := range bytes.SplitSeq(text, []byte("\n")) {
			client.Write(p[:min(len(p), maxPayload)])
		}
		client.CloseWrite()
		answer, _ := io.ReadAll(client)
		client.Close()
		<-done
		s.serving.Wait()
		if i := bytes.IndexByte(answer, 'r'); i == 0 && !json.Valid(answer[1:]) {
			t.Errorf("the reply is %q", answer)
		}
	})
}

func conn(t *testing.T, fd int) *net.UnixConn {
	t.Helper()
	f := os.NewFile(uintptr(fd), "pair")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.UnixConn)
}

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/netsetup"
	"github.com/vmrun/vmrun/profiles"
)

// TestNetUpTakenDown: who takes a network down before net up has told of it is
// named as the cause.
func TestNetUpTakenDown(t *testing.T) {
	h := netsetup.Host{Runtime: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
	spec := netsetup.Spec{Name: "lan", Shared: true}
	takenDown(t, filepath.Join(h.Runtime, "nets", spec.ID()))
	u := &raising{host: h, foreground: true, log: h.Log}
	_, err := u.one(context.Background(), spec)
	if want := "bring network lan up: somebody has taken it down again"; err == nil || err.Error() != want {
		t.Errorf("up: %v, want %s", err, want)
	}
	if err := u.lower(); err != nil || len(u.holds) != 1 {
		t.Errorf("lower %d holds: %v", len(u.holds), err)
	}
}

// takenDown is a keeper that grants a hold, and whose network is gone before its
// holder hears it.
func takenDown(t *testing.T, dir string) {
	t.Helper()
	l := listenAsKeeper(t, dir)
	done := make(chan bool)
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			t.Errorf("nobody wants to hold it: %v", err)
			return
		}
		defer conn.Close()
		conn.Read(make([]byte, 1<<16))
		l.Close() // and its name is gone
		for _, reply := range []string{`{"protocol":1,"held":{}}`, `{"protocol":1,"down":{}}`} {
			if _, err := conn.Write([]byte(reply)); err != nil {
				t.Error(err)
			}
		}
	}()
}

// listenAsKeeper has a network's folder and a keeper's socket in it.
func listenAsKeeper(t *testing.T, dir string) *net.UnixListener {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(dir, "keeper.sock"), Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestNetUpInterrupted: whatever a signal cuts short, net up takes back what it has
// brought up, and its exit code tells of the signal.
func TestNetUpInterrupted(t *testing.T) {
	for _, signal := range []unix.Signal{unix.SIGINT, unix.SIGTERM} {
		for _, at := range []string{"hold", "inspect"} {
			for _, foreground := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s at %s, foreground %v", unix.SignalName(signal), at, foreground), func(t *testing.T) {
					interrupt(t, signal, at, foreground)
				})
			}
		}
	}
}

func interrupt(t *testing.T, signal unix.Signal, at string, foreground bool) {
	if !foreground && os.Geteuid() != 0 {
		t.Skip("a holder takes root where systemd gives it a scope")
	}
	dir := t.TempDir()
	h := netsetup.Host{Runtime: dir, State: dir, Executable: filepath.Join(dir, "holder"), Log: slog.New(slog.DiscardHandler)}
	holder := "#!/bin/sh\necho {} >&3\n" // says that it holds
	if at == "hold" {
		holder = fmt.Sprintf("#!/bin/sh\nkill -%d $PPID\nkill -STOP $$\n", signal)
	}
	if err := os.WriteFile(h.Executable, []byte(holder), 0o700); err != nil {
		t.Fatal(err)
	}
	k := &interrupter{signal: signal, at: at}
	k.listen(t, filepath.Join(dir, "nets", "lan"))
	signals, stop := listen()
	defer stop()
	u := &raising{host: h, foreground: foreground, log: h.Log}
	_, err := u.raise(t.Context(), signals, []profiles.Network{{Name: "lan", Shared: true, Mode: profiles.NAT}})
	if code, want := exitCode(err), exitSignal+int(signal); code != want || err.Error() != "ended by "+unix.SignalName(signal) {
		t.Errorf("exit code %d, want %d: %v", code, want, err)
	}
	if down := k.isDown(); down != (at == "inspect") {
		t.Errorf("it was told to go down: %v", down)
	}
}

// interrupter is a keeper of a network that is up, and of which one request is never
// answered: this process gets a signal instead.
type interrupter struct {
	signal unix.Signal
	at     string

	mu   sync.Mutex
	down bool // it was told to go down
}

func (k *interrupter) isDown() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.down
}

// listen serves until the test has ended.
func (k *interrupter) listen(t *testing.T, dir string) {
	t.Helper()
	l := listenAsKeeper(t, dir)
	var served sync.WaitGroup
	t.Cleanup(func() { l.Close(); served.Wait() })
	served.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() { k.serve(conn) })
		}
	})
}

// serve answers the requests of one connection, but for the one that it cuts short.
func (k *interrupter) serve(conn net.Conn) {
	defer conn.Close()
	buffer := make([]byte, 1<<16)
	for {
		n, err := conn.Read(buffer)
		if err != nil || n == 0 {
			return
		}
		request := string(buffer[:n])
		switch {
		case strings.Contains(request, `"`+k.at+`":`):
			unix.Kill(unix.Getpid(), k.signal)
		case strings.Contains(request, `"hold":`):
			conn.Write([]byte(`{"protocol":1,"held":{}}`))
		default: // it is to go down
			k.mu.Lock()
			k.down = true
			k.mu.Unlock()
			conn.Write([]byte(`{"protocol":1,"down":{}}`))
		}
	}
}

package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/vmrun/vmrun/netsetup"
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
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(dir, "keeper.sock"), Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
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

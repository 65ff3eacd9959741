package netsetup

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/internal/fanout"
	"github.com/vmrun/vmrun/netsetup/firewall"
)

// socketPair is the two ends of a keeper's connection.
func socketPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return conns[0], conns[1]
}

// FuzzRequest lets a member say anything: whatever it is, the keeper answers
// or hangs up, and when the member is gone the host is as before.
func FuzzRequest(f *testing.F) {
	for _, r := range []request{
		{Protocol: 1, Attach: &attachRequest{ID: "a", Net: specs()["bridge-join"], Port: testPort()}},
		{Protocol: 2, Attach: &attachRequest{ID: "a", Net: specs()["bridge-join"], Port: testPort()}},
		{Protocol: 1, Detach: true},
		{Protocol: 1, Hold: &holdRequest{ID: "a", Net: specs()["bridge-join"], Group: &Group{7, "lab"}}},
		{Protocol: 1, Inspect: true},
		{Protocol: 1, Down: true},
		{Protocol: 1, Attach: &attachRequest{Net: Spec{Mode: "moon"}}},
	} {
		text, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte("{"))
	f.Add([]byte(`{"protocol":1,"attach":{"port":{"queues":-1,"mac":"x"}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) == 0 || len(text) > maxMessage {
			return
		}
		k, world := fakeKeeper(t)
		before := world.state()
		here, there := socketPair(t)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			k.member(context.Background(), there, newPeer(there))
		}()
		if _, err := here.Write(text); err != nil {
			t.Fatal(err)
		}
		var answer reply
		files, _ := receive(here, &answer)
		closeAll(files)
		here.Close()
		<-ended
		if diff := cmp.Diff(before, world.state()); diff != "" {
			t.Errorf("left behind:\n%s", diff)
		}
	})
}

// fakeKeeper is a keeper of nothing yet on a fake kernel, without a backend
// for rules: only a bridge that is there already can be joined.
func fakeKeeper(t *testing.T) (*keeper, *fake) {
	t.Helper()
	world := newFake()
	world.add(Link{Name: "br0", Kind: "bridge", Up: true, MTU: 9000})
	world.filter = firewall.Facts{NoNFTables: "none", NoCommand: "none"}
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	j, err := openJournal(dir, log)
	if err != nil {
		t.Fatal(err)
	}
	k := &keeper{host: Host{Runtime: dir, State: filepath.Join(dir, "state")}, dir: dir, log: log, journal: j,
		w:         &effects{kernel: world, claims: &claims{origin: "boot", dir: dir, held: map[string]*os.File{}}},
		followers: fanout.Fanout[Event]{Missed: missedEvents}, stop: func() {}, ports: map[string]*holding{}}
	k.leaving.wake = sync.NewCond(&k.mu)
	return k, world
}

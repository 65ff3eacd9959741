package netsetup

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestSweepAside: what lives is left alone, also where it gives no answer, and
// what is dead is undone.
func TestSweepAside(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	uplinks(t)
	withEach(t, func(t *testing.T, h Host) {
		hostState(t)
		before := hostState(t)
		ctx := context.Background()
		m := startMember(t, h, "nat")
		keeper := lan(t, h).KeeperID
		inUse := hostState(t)
		leaves := func(what string) {
			t.Helper()
			if lines, err := SweepAside(ctx, h); err != nil || lines != nil {
				t.Errorf("%s: swept %v, %v", what, lines, err)
			}
			if diff := cmp.Diff(inUse, hostState(t)); diff != "" {
				t.Errorf("%s:\n%s", what, diff)
			}
		}
		leaves("in use")
		halt(t, keeper)
		leaves("its keeper was stopped")
		halt(t, m.Process.Pid) // nobody starts another one
		kill(t, keeper)
		inUse = hostState(t) // without what goes with a keeper
		leaves("a VM without keeper is on it")
		m.Process.Kill()
		m.Wait()
		if lines, err := SweepAside(ctx, h); err != nil || len(lines) == 0 {
			t.Errorf("swept %v, %v", lines, err)
		}
		leftNothing(t, h, before, hostState)
	})
}

// TestLockOfTheNext: who waits for a dead or closing keeper's lock is done when
// the next keeper serves the network, and holds the lock for long.
func TestLockOfTheNext(t *testing.T) {
	dir := t.TempDir()
	held, err := lockFile(filepath.Join(dir, "lock"), unix.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	type result struct {
		lock *os.File
		err  error
	}
	swept := make(chan result, 1)
	go func() {
		lock, err := lockDead(t.Context(), dir)
		swept <- result{lock, err}
	}()
	select {
	case r := <-swept:
		t.Fatalf("did not wait for who holds the lock: %v", r)
	case <-time.After(50 * time.Millisecond):
	}
	listener := listen(t, dir)
	closing := make(chan bool, 2)
	closing <- false
	go answerPings(listener, closing)
	if r := <-swept; r.lock != nil || r.err != nil {
		t.Errorf("beside a keeper that serves: %v, %v", r.lock, r.err)
	}
	closing <- true
	closing <- false
	if err := awaitGone(t.Context(), dir); err != nil {
		t.Error(err)
	}
	if len(closing) > 0 {
		t.Error("did not wait for a keeper that is closing")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := awaitGone(ctx, dir); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("beside a keeper that says nothing: %v", err)
	}
}

// TestPingTellsTheEnd: a keeper whose network has gone says so to who asks how it is.
func TestPingTellsTheEnd(t *testing.T) {
	k, _ := fakeKeeper(t)
	asked := func() reply {
		t.Helper()
		keeper, asker := socketPair(t)
		k.answer(keeper, peer{}, request{Protocol: protocolVersion, Ping: true})
		answer, err := receiveAnswer(asker)
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	if asked().Closing {
		t.Error("it is closing before anybody has come")
	}
	k.endIfUnused()
	if !asked().Closing {
		t.Error("it is not closing though nobody has come")
	}
}

// listen is a keeper's socket that a test answers at.
func listen(t *testing.T, dir string) net.Listener {
	t.Helper()
	f, err := listenKeeper(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	listener, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

// answerPings says in turn whether the keeper is closing.
func answerPings(listener net.Listener, closing <-chan bool) {
	for {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		conn := c.(*net.UnixConn)
		var r request
		if _, err := receive(conn, &r); err == nil && r.Ping {
			send(conn, reply{Protocol: protocolVersion, Closing: <-closing}, nil)
		}
		conn.Close()
	}
}

package netsetup

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestPortsLeaveTogether: ports that leave while the kernel takes another away
// go in one request, one that can't be removed alone is told of, and its name is
// free again when it is gone.
func TestPortsLeaveTogether(t *testing.T) {
	k, world := fakeKeeper(t)
	spec := specs()["bridge-join"]
	k.log = slog.New(slog.DiscardHandler)
	k.mu.Lock() // as whoever serves a member does: the keeper follows the kernel's news from here on
	if err := k.bringUp(spec); err != nil {
		t.Fatal(err)
	}
	before := world.state()
	const n = 20
	for i := range n {
		h := &holding{portRecord: portRecord{ID: fmt.Sprint(i), Spec: portOf(i), Link: k.names.tap(portOf(i))}}
		files, err := k.openPort(h)
		if err != nil {
			t.Fatal(err)
		}
		closeAll(files)
		k.ports[h.ID] = h
	}
	world.asked, world.proceed = make(chan []string), make(chan struct{})
	k.mu.Unlock()
	results := make([]detachResult, n)
	var leavers sync.WaitGroup
	leave := func(i int) {
		leavers.Go(func() {
			k.enter()
			defer k.exit()
			results[i] = k.removePort(k.ports[fmt.Sprint(i)])
		})
	}
	leave(0)
	first := <-world.asked // the kernel is at it
	for i := 1; i < n-1; i++ {
		leave(i)
	}
	for waiting := 0; waiting < n-2; {
		k.mu.Lock()
		waiting = len(k.leaving.waiting)
		k.mu.Unlock()
	}
	world.proceed <- struct{}{}
	second := <-world.asked
	world.proceed <- struct{}{}
	leavers.Wait()
	if len(first) != 1 || len(second) != n-2 {
		t.Errorf("requests for %d and %d links, want 1 and %d", len(first), len(second), n-2)
	}
	if i := slices.IndexFunc(results, func(r detachResult) bool { return r.Errors != "" }); i >= 0 {
		t.Errorf("port %d: %s", i, results[i].Errors)
	}
	if len(k.ports) != 1 || len(k.journal.ports()) != 1 {
		t.Errorf("%d ports and %d in the journal, want one", len(k.ports), len(k.journal.ports()))
	}
	world.asked = nil
	k.enter()
	if r := k.removePort(k.ports[fmt.Sprint(n-1)]); !r.Last || r.Errors != "" {
		t.Errorf("the last one: %+v", r)
	}
	k.exit()
	if diff := cmp.Diff(before, world.state()); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

// TestManyLeave is many VMs that end at the same time. How long it takes is told
// and not judged: that is for make bench.
func TestManyLeave(t *testing.T) {
	if !inNamespaces(t) {
		return
	}
	h, before := uplinkedHost(t)
	ctx := context.Background()
	if err := StartHolder(ctx, h, specs()["nat"], nil); err != nil {
		t.Fatal(err)
	}
	const n = 100
	var ports []*Port
	joined := make([]time.Duration, n)
	for i := range n {
		started := time.Now()
		p, err := Attach(ctx, h, specs()["nat"], portOf(i))
		if err != nil {
			t.Fatal(err)
		}
		joined[i] = time.Since(started)
		qemu, err := unix.Dup(int(p.Files()[0].Fd())) // which closes it later than its supervisor
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(qemu)
		ports = append(ports, p)
	}
	report := lan(t, h) // more than fits into one message
	if len(report.Members) != n || len(report.Leases) != n {
		t.Errorf("%d members and %d leases are told of, want %d", len(report.Members), len(report.Leases), n)
	}
	started := time.Now()
	var all sync.WaitGroup
	for _, p := range ports {
		all.Go(func() {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	took := time.Since(started)
	t.Logf("%d ports left in %v, %v each; the first ten joined in %v each, the last ten in %v (medians)",
		n, took, took/n, slices.Sorted(slices.Values(joined[:10]))[5], slices.Sorted(slices.Values(joined[n-10:]))[5])
	started = time.Now()
	if err := Down(ctx, h, "lan", specs()["nat"].Dir); err != nil {
		t.Error(err)
	}
	t.Logf("the network went in %v", time.Since(started))
	awaitAlone(t)
	if diff := cmp.Diff(before, hostState(t)); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

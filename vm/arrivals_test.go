package vm

import (
	"context"
	"testing"
)

// Machines that live are told once each, and so is each that starts later, whether
// or not there was one of its name before.
func TestArrivals(t *testing.T) {
	f := newFixture(t, "run")
	f.launch(t)
	ctx, cancel := context.WithCancel(t.Context())
	arrived, ready, ended := make(chan Machine, 16), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- Arrivals(ctx, f.host, func() { close(ready) }, func(m Machine) { arrived <- m })
	}()
	<-ready
	if m := <-arrived; m.Name != "web" || m.Phase != Running {
		t.Errorf("arrived %+v", m)
	}
	for range 3 {
		g := *f
		g.profile.Name = "db"
		i := g.launch(t)
		if m := <-arrived; m.Name != "db" || !m.Alive() {
			t.Errorf("arrived %+v", m)
		}
		if err := i.Close(); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-ended; err != nil || len(arrived) > 0 {
		t.Errorf("%d more arrived, %v", len(arrived), err)
	}
}

// A host on which no machine ever ran has arrivals too.
func TestFirstArrival(t *testing.T) {
	f := newFixture(t, "run")
	ctx, cancel := context.WithCancel(t.Context())
	arrived, ready, ended := make(chan Machine, 16), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- Arrivals(ctx, f.host, func() { close(ready) }, func(m Machine) { arrived <- m })
	}()
	<-ready
	f.launch(t)
	if m := <-arrived; m.Name != "web" {
		t.Errorf("arrived %+v", m)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

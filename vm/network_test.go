package vm

import (
	"errors"
	"io"
	"testing"
	"time"
)

// The networks are left as soon as the guest has ended, while QEMU is still
// there, and Close has the errors.
func TestLeavesWithGuest(t *testing.T) {
	f := everything(t, "linger")
	f.net.left, f.net.leaving = make(chan struct{}, 2), errors.New("the fake can't leave")
	i, err := Launch(t.Context(), f.plan(t), f.host, f.options)
	if err != nil {
		t.Fatal(err)
	}
	go i.Stop(t.Context(), time.Hour)
	for range 2 {
		<-f.net.left
	}
	if i.hasEnded() {
		t.Error("QEMU has ended first")
	}
	forward := f.profile.NICs[0].Forward[0]
	if err := checkPort(forward); err != nil {
		t.Errorf("after the network was left: %v", err)
	}
	if _, err := io.WriteString(i.Console(), "x"); err != nil {
		t.Fatal(err)
	}
	wait(t, i)
	if err := i.Close(); !errors.Is(err, f.net.leaving) {
		t.Errorf("close returned %v, want %v", err, f.net.leaving)
	}
}

// Networks are left after QEMU where nothing tells that the guest is gone
// before, or where QEMU may go on from there.
func TestLeavesAfterQEMU(t *testing.T) {
	for _, test := range []struct {
		behaviour string
		args      []string
	}{
		{"crash", nil},
		{"off", []string{"-no-shutdown"}},
	} {
		f := everything(t, test.behaviour)
		f.profile.Machine.Args = test.args
		f.net.left = make(chan struct{}, 2)
		i := f.launch(t)
		wait(t, i)
		if n := len(f.net.left); n > 0 {
			t.Errorf("%s: left %d ports before Close", test.behaviour, n)
		}
		if err := i.Close(); err != nil || len(f.net.left) != 2 {
			t.Errorf("%s: left %d ports by Close, %v", test.behaviour, len(f.net.left), err)
		}
	}
}

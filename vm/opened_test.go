package vm

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmrun/vmrun/netsetup"
)

// TestPlanOpened: a network that root has opened takes no privilege, one that it
// has not says who may.
func TestPlanOpened(t *testing.T) {
	for _, test := range []struct {
		opened error
		want   []string
	}{
		{nil, nil},
		{&netsetup.ClosedError{Group: "lab"}, []string{"use network lan: root runs it for group lab, which you are not in"}},
		{&netsetup.ClosedError{}, []string{"use network lan: root runs it, for itself alone"}},
	} {
		p, h := sampleProfiles()["nat"], sampleHost()
		h.EUID, h.Privileged = 1000, false
		var asked netsetup.Spec
		h.CheckOpened = func(s netsetup.Spec) error {
			asked = s
			return test.opened
		}
		plan, err := NewPlan(&p, h)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, plan.NeedsRoot); diff != "" {
			t.Errorf("%v: needs root (-want +got):\n%s", test.opened, diff)
		}
		if asked != *plan.NICs[0].Spec {
			t.Errorf("asked about %+v", asked)
		}
	}
}

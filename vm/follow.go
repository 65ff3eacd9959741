package vm

import (
	"encoding/json"

	"github.com/vmrun/vmrun/qmp"
)

// phases are those that QEMU's events lead to.
var phases = map[string]Phase{
	"RESUME":         Running,
	"STOP":           Paused,
	"GUEST_PANICKED": Stopping,
	"SHUTDOWN":       Stopping,
}

// follow reads events until there are no more, keeping the machine's phase, and
// returns the reason of the first SHUTDOWN, at which it calls guestGone, unless
// that is no end in order: then the networks stay until somebody has looked at
// them. A reset that the machine goes on from is another event.
func (i *Instance) follow(events <-chan qmp.Event, guestGone func()) string {
	reason, panicked := "", false
	for e := range events {
		if to, ok := phases[e.Name]; ok {
			i.enter(to)
		}
		switch e.Name {
		case "GUEST_PANICKED":
			panicked = true
		case "SHUTDOWN":
			var data struct{ Reason string }
			if reason == "" && json.Unmarshal(e.Data, &data) == nil {
				reason = data.Reason
			}
			if !panicked && reason != GuestPanic {
				guestGone()
			}
		}
	}
	if panicked {
		return GuestPanic
	}
	return reason
}

// enter notes the machine's phase. From stopping there is no way back.
func (i *Instance) enter(p Phase) {
	i.note(func(s *State) {
		if s.Phase != Stopping {
			s.Phase = p
		}
	})
}

// note changes what state.json says. A machine does not end for lack of it.
func (i *Instance) note(change func(*State)) {
	if err := i.record.update(change); err != nil {
		i.log.Warn("others may see an old state of the virtual machine", "cause", err)
	}
}

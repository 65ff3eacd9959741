package main

import (
	"strings"
	"testing"
	"time"
)

// Which command lines a VM belongs to, so that a user is told of root's.
func TestOwnsVM(t *testing.T) {
	for line, want := range map[string]bool{
		"/usr/bin/vmrun supervisor web": true, "vmrun run web.toml": true, "vmrun run -d web.toml": false,
		"vmrun run --detach web.toml": false, "vmrun keeper": false, "vmrun": false, "vi supervisor": false, "": false,
	} {
		if got := ownsVM(strings.Fields(line)); got != want {
			t.Errorf("%q: %v", line, got)
		}
	}
}

func TestShortDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m1s", 3*time.Hour + 5*time.Minute: "3h5m", 50 * time.Hour: "2d2h",
	} {
		if got := shortDuration(d); got != want {
			t.Errorf("%v is %s, want %s", d, got, want)
		}
	}
}

func TestParseSince(t *testing.T) {
	now := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"": {}, "10m": now.Add(-10 * time.Minute), "2026-01-02T15:00:00Z": now.Add(-4*time.Minute - 5*time.Second),
	} {
		if got, err := parseSince(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
	for _, bad := range []string{"-1m", "yesterday", "10", "2026-13-01"} {
		if got, err := parseSince(bad, now); err == nil {
			t.Errorf("%q is taken for %v", bad, got)
		}
	}
}

// Root's supervisors get a scope of their own under systemd, a user's where they
// would else be a service's.
func TestScope(t *testing.T) {
	const run = "/usr/bin/systemd-run"
	for _, test := range []struct {
		scope scope
		want  string
	}{
		{scope{"", 0, ""}, "vmrun supervisor web"},
		{scope{run, 0, "0::/system.slice/ci.service"}, run + " --scope --quiet --collect --description=vmrun virtual machine web -- vmrun supervisor web"},
		{scope{run, 1000, "0::/user.slice/user-1000.slice/session-3.scope"}, "vmrun supervisor web"},
		{scope{run, 1000, "0::/user.slice/user-1000.slice/user@1000.service/app.slice/ci.service"},
			run + " --scope --quiet --collect --description=vmrun virtual machine web --user -- vmrun supervisor web"},
	} {
		if got := strings.Join(test.scope.command("web", "vmrun", "supervisor", "web"), " "); got != test.want {
			t.Errorf("%+v:\n%s, want\n%s", test.scope, got, test.want)
		}
	}
}

// Nothing of a caller's environment reaches a supervisor but what systemd-run and
// Go's runtime look at.
func TestSupervisorEnv(t *testing.T) {
	got := strings.Join(supervisorEnv([]string{"HOME=/root", "SECRET=x", "XDG_RUNTIME_DIR=/run/user/0", "NOTIFY_SOCKET=/x"}), " ")
	if want := "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin XDG_RUNTIME_DIR=/run/user/0"; got != want {
		t.Errorf("got %s", got)
	}
}

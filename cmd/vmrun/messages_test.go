package main

import (
	"bytes"
	"errors"
	"testing"
)

func TestMessages(t *testing.T) {
	var out bytes.Buffer
	log := newMessages(&out, false)
	log.Debug("not for people")
	log.Info("web: joined network lan (2 members)")
	log.With("vm", "web").WithGroup("nic").Info("lease", "ip", "10.0.0.2", "name", "a b")
	log.Warn("KVM does not work here, using TCG", "error", errors.New("no device"))
	newMessages(&out, true).Info("quiet")
	newMessages(&out, true).Warn("loud")
	const want = `vmrun: web: joined network lan (2 members)
vmrun: lease vm=web nic.ip=10.0.0.2 nic.name="a b"
vmrun: warning: KVM does not work here, using TCG error="no device"
vmrun: warning: loud
`
	if got := out.String(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

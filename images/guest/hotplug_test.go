package guest

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseUevent(t *testing.T) {
	text := "add@/devices/system/cpu/cpu2\x00ACTION=add\x00DEVPATH=/devices/system/cpu/cpu2\x00SUBSYSTEM=cpu\x00MODALIAS=cpu:type:x86=1\x00"
	want := map[string]string{"ACTION": "add", "DEVPATH": "/devices/system/cpu/cpu2", "SUBSYSTEM": "cpu", "MODALIAS": "cpu:type:x86=1"}
	if diff := cmp.Diff(want, parseUevent([]byte(text))); diff != "" {
		t.Error(diff)
	}
	if got := parseUevent([]byte("libudev\x00\xff\x00=")); got["ACTION"] != "" {
		t.Errorf("%v", got)
	}
}

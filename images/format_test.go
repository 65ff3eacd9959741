package images

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

func TestDetectFormat(t *testing.T) {
	for _, tt := range []struct {
		head, want, err string
	}{
		{head: "", want: "raw"},
		{head: "QFI", want: "raw"},
		{head: "QFI\xfb", want: "qcow2"},
		{head: strings.Repeat("\x00", 4096), want: "raw"},
		{head: "\xfd7zXZ\x00", err: "unxz"},
		{head: "KDMV", err: "VMDK"},
		{head: strings.Repeat("x", 64) + "\x7f\x10\xda\xbe", err: "VDI"},
	} {
		got, err := DetectFormat(strings.NewReader(tt.head))
		if tt.err != "" {
			wantError(t, err, tt.err)
		} else if string(got) != tt.want || err != nil {
			t.Errorf("DetectFormat(%.10q) = %q, %v", tt.head, got, err)
		}
	}
}

// qcow2Header makes the header of an image of 1 GiB without a backing image.
func qcow2Header(version uint32) []byte {
	b := make([]byte, 512)
	copy(b, qcow2Magic)
	binary.BigEndian.PutUint32(b[4:], version)
	binary.BigEndian.PutUint64(b[24:], 1<<30)
	binary.BigEndian.PutUint32(b[100:], qcow2V3HeaderLen)
	return b
}

func TestParseQCOW2(t *testing.T) {
	put64 := func(offset int, v uint64) func([]byte) {
		return func(b []byte) { binary.BigEndian.PutUint64(b[offset:], v) }
	}
	for _, tt := range []struct {
		name   string
		change func(b []byte)
		err    string
	}{
		{"plain", func([]byte) {}, ""},
		{"old", func(b []byte) { b[7] = 2 }, ""},
		{"future", func(b []byte) { b[7] = 4 }, "version 4"},
		{"external data", put64(72, 4), "external data file"},
		{"encrypted", func(b []byte) { b[35] = 1 }, "encrypted"},
		{"huge", put64(24, 1<<63), "size of 9223372036854775808 bytes"},
		{"name outside", func(b []byte) { b[15], b[19] = 200, 255; put64(8, 400)(b) }, "outside"},
		{"name far outside", func(b []byte) { put64(8, 1<<63)(b); b[19] = 9 }, "outside"},
	} {
		b := qcow2Header(3)
		tt.change(b)
		im, err := parseQCOW2(b)
		if tt.err != "" {
			wantError(t, err, tt.err)
		} else if err != nil || im != (image{size: 1 << 30}) {
			t.Errorf("%s: %+v, %v", tt.name, im, err)
		}
	}
}

func FuzzParseQCOW2(f *testing.F) {
	f.Add(qcow2Header(3))
	backed := qcow2Header(2)
	binary.BigEndian.PutUint64(backed[8:], 200)
	backed[19] = 4
	binary.BigEndian.PutUint32(backed[72:], qcow2BackingFormat)
	copy(backed[76:], "\x00\x00\x00\x03raw")
	copy(backed[200:], "base")
	f.Add(backed)
	if im, err := parseQCOW2(backed); err != nil || im != (image{1 << 30, "base", FormatRaw}) {
		f.Fatalf("%+v, %v", im, err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		im, err := parseQCOW2(b)
		if err == nil && (im.size < 0 || !bytes.Contains(b, []byte(im.backing))) {
			t.Errorf("%+v", im)
		}
	})
}

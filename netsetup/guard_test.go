package netsetup

import (
	"testing"

	"golang.org/x/net/bpf"
)

// TestGuardProgram runs the program on frames as the kernel hands them to it.
// The interpreter does not know the extension for the outer tag, which package
// integration tests on a real TAP; here its result is taken as "no tag".
func TestGuardProgram(t *testing.T) {
	mac := MAC{0x52, 0x54, 0, 1, 2, 3}
	other := MAC{0x52, 0x54, 0, 1, 2, 4}
	frame := func(from MAC, etherType uint16) []byte {
		f := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, from[:]...)
		return append(f, byte(etherType>>8), byte(etherType), 0, 0, 0, 0)
	}
	tests := []struct {
		name  string
		guard guard
		frame []byte
		want  int
	}{
		{"own", guard{MAC: mac}, frame(mac, 0x0800), actOK},
		{"foreign MAC", guard{MAC: mac}, frame(other, 0x0800), actShot},
		{"foreign MAC, spoof", guard{MAC: mac, Spoof: true}, frame(other, 0x0800), actOK},
		{"second tag", guard{MAC: mac}, frame(mac, 0x8100), actShot},
		{"service tag", guard{MAC: mac}, frame(mac, 0x88a8), actShot},
		{"tag, trunk", guard{MAC: mac, Trunk: true}, frame(mac, 0x8100), actOK},
		{"foreign MAC, trunk", guard{MAC: mac, Trunk: true}, frame(other, 0x8100), actShot},
	}
	for _, tt := range tests {
		program := guardProgram(tt.guard)
		for i, in := range program {
			if in == (bpf.LoadExtension{Num: bpf.ExtVLANTagPresent}) {
				program[i] = bpf.LoadConstant{Dst: bpf.RegA, Val: 0}
			}
		}
		vm, err := bpf.NewVM(program)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := vm.Run(tt.frame); err != nil || got != tt.want {
			t.Errorf("%s: verdict %d, %v; want %d", tt.name, got, err, tt.want)
		}
	}
}

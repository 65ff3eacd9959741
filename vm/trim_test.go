package vm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"testing/iotest"
)

// stream writes a state as QEMU does.
type stream struct{ bytes.Buffer }

func (s *stream) number(n any) *stream {
	binary.Write(&s.Buffer, binary.BigEndian, n) // of fixed size: no error
	return s
}

func (s *stream) name(n string) *stream {
	s.WriteByte(byte(len(n)))
	s.WriteString(n)
	return s
}

func newStream() *stream {
	s := &stream{}
	s.WriteString(stateMagic)
	s.WriteByte(partMachine)
	s.number(uint32(len("pc-q35-7.2"))).WriteString("pc-q35-7.2")
	s.WriteByte(partStart)
	s.number(uint32(2)).name("ram").number(uint32(0)).number(uint32(memoryVersion))
	s.number(uint64(0x6000 | recordSizes)).name("pc.ram").number(uint64(0x4000)).name("pc.bios").number(uint64(0x2000))
	return s.end()
}

func (s *stream) end() *stream {
	s.number(uint64(recordLast)).WriteByte(partFooter)
	return s.number(uint32(2))
}

func (s *stream) more(part byte) *stream {
	s.WriteByte(part)
	return s.number(uint32(2))
}

// record is of the block, or of the one before where that is "".
func (s *stream) record(addr, flags uint64, block string) *stream {
	if block == "" {
		return s.number(addr | flags | recordSame)
	}
	return s.number(addr | flags).name(block)
}

func (s *stream) zero(addr uint64, block string, fill byte) *stream {
	s.record(addr, recordZero, block).WriteByte(fill)
	return s
}

func (s *stream) page(addr uint64, block string, fill byte) *stream {
	s.record(addr, recordPage, block).Write(bytes.Repeat([]byte{fill}, recordPageSize))
	return s
}

// rest is what follows the memory, which may look like anything.
func (s *stream) rest() *stream {
	s.WriteString("\x04device\x00\x00\x00\x00\x00\x00\x00\x02pc.ram")
	return s
}

func TestTrimZeros(t *testing.T) {
	for name, tt := range map[string]struct{ in, want *stream }{
		"zeros go, and a page behind them says its block": {
			newStream().more(partMore).zero(0, "pc.ram", 0).page(0x1000, "", 7).zero(0x2000, "", 0).page(0x3000, "", 8).end().more(partEnd).end().rest(),
			newStream().more(partMore).page(0x1000, "pc.ram", 7).page(0x3000, "", 8).end().more(partEnd).end().rest(),
		},
		"firmware keeps its zeros, and so does what is filled": {
			newStream().more(partEnd).zero(0, "pc.bios", 0).zero(0x1000, "", 0).zero(0, "pc.ram", 0).zero(0x1000, "", 9).end().rest(),
			newStream().more(partEnd).zero(0, "pc.bios", 0).zero(0x1000, "", 0).zero(0x1000, "pc.ram", 9).end().rest(),
		},
		"the block of the last part still counts": {
			newStream().more(partMore).page(0, "pc.ram", 1).end().more(partEnd).zero(0x1000, "", 0).page(0x2000, "", 2).end(),
			newStream().more(partMore).page(0, "pc.ram", 1).end().more(partEnd).page(0x2000, "", 2).end(),
		},
		"an unknown record says its block, and all behind it stays": {
			newStream().more(partMore).zero(0, "pc.ram", 0).record(0x1000, 0x100, "").zero(0x2000, "", 0).end(),
			newStream().more(partMore).record(0x1000, 0x100, "pc.ram").zero(0x2000, "", 0).end(),
		},
	} {
		var out bytes.Buffer
		if err := trimZeros(&out, iotest.HalfReader(&tt.in.Buffer)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.Equal(out.Bytes(), tt.want.Bytes()) {
			t.Errorf("%s:\n%q, want\n%q", name, shorten(out.String()), shorten(tt.want.String()))
		}
	}
}

// shorten leaves out what pages are filled with.
func shorten(s string) string {
	for _, fill := range []string{"\x01", "\x02", "\x07", "\x08"} {
		s = strings.ReplaceAll(s, strings.Repeat(fill, recordPageSize), "…")
	}
	return s
}

func TestTrimZerosErrors(t *testing.T) {
	in := newStream().more(partEnd).page(0, "pc.ram", 1).end().rest().String()
	if err := trimZeros(failingWriter{}, strings.NewReader(in)); !errors.Is(err, errFull) {
		t.Errorf("on a full disk: %v", err)
	}
	if err := trimZeros(&bytes.Buffer{}, iotest.ErrReader(errFull)); !errors.Is(err, errFull) {
		t.Errorf("from a broken pipe: %v", err)
	}
}

var errFull = errors.New("full")

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errFull }

// Whatever is no state stays as it is, to the last byte.
func FuzzTrimZeros(f *testing.F) {
	f.Add([]byte("no state"))
	f.Add(newStream().more(partEnd).page(0, "pc.ram", 1).end().rest().Bytes())
	f.Add(newStream().more(partMore).zero(0, "pc.ram", 0).page(0x1000, "", 7).Bytes())
	f.Fuzz(func(t *testing.T, in []byte) {
		var out, again bytes.Buffer
		if err := trimZeros(&out, bytes.NewReader(in)); err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(in, []byte(stateMagic)) && !bytes.Equal(in, out.Bytes()) {
			t.Errorf("%q became %q", in, out.Bytes())
		}
		if err := trimZeros(&again, bytes.NewReader(out.Bytes())); err != nil || !bytes.Equal(again.Bytes(), out.Bytes()) {
			t.Errorf("%q became %q at the second time, %v", out.Bytes(), again.Bytes(), err)
		}
	})
}

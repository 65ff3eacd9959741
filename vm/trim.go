package vm

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
)

// trimZeros copies a machine's state as QEMU writes it without the pages of its
// memory that are zero: it is read into memory that is zero, and QEMU would look
// at each page to find that so. Where it meets what it does not know, it
// copies all the rest as it is, which is as good.
//
// The form is told by QEMU's docs/devel/migration.rst and, for the memory, by the
// RAM_SAVE_FLAGs of migration/ram.c. It has been the same since QEMU 2.4.
func trimZeros(dst io.Writer, src io.Reader) error {
	t := trimmer{in: bufio.NewReaderSize(src, trimBuffer), out: bufio.NewWriterSize(dst, trimBuffer)}
	err := t.state()
	if errors.Is(err, errUnknownForm) {
		if _, err = t.out.Write(t.taken); err == nil {
			_, err = io.Copy(t.out, t.in)
		}
	}
	if err == nil {
		err = t.out.Flush()
	}
	return err
}

const trimBuffer = 256 << 10

// errUnknownForm says that what was taken, and all that follows, is to be copied.
var errUnknownForm = errors.New("not the form of a state that is known")

// Parts of a state.
const (
	stateMagic    = "QEVM\x00\x00\x00\x03"
	partStart     = 0x01 // of a device's state that comes in several parts, as memory does
	partMore      = 0x02
	partEnd       = 0x03
	partMachine   = 0x07
	partFooter    = 0x7e
	memoryDevice  = "ram"
	memoryVersion = 4
)

// Flags of a record of memory, below the page's address.
const (
	recordZero     = 0x02
	recordSizes    = 0x04
	recordPage     = 0x08
	recordLast     = 0x10
	recordSame     = 0x20 // the block of the record before
	recordPageSize = 4 << 10
)

// trimmer reads a state. What it has taken it either passes on or drops.
type trimmer struct {
	in    *bufio.Reader
	out   *bufio.Writer
	taken []byte
	part  uint32 // the memory's number among the devices; valid once it has started
	begun bool
	block string // that the last record was of
	told  string // that the reader believes it was
}

// take takes n bytes more.
func (t *trimmer) take(n int) ([]byte, error) {
	at := len(t.taken)
	t.taken = slices.Grow(t.taken, n)[:at+n]
	got, err := io.ReadFull(t.in, t.taken[at:])
	if err != nil {
		t.taken = t.taken[:at+got]
		return nil, errUnknownForm // the writer's end, sooner than it should
	}
	return t.taken[at:], nil
}

func (t *trimmer) take32() (uint32, error) {
	b, err := t.take(4)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint32(b), nil
}

func (t *trimmer) take64() (uint64, error) {
	b, err := t.take(8)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(b), nil
}

// takeName takes a word with its length before it.
func (t *trimmer) takeName() (string, error) {
	n, err := t.take(1)
	if err != nil {
		return "", err
	}
	name, err := t.take(int(n[0]))
	return string(name), err
}

// pass passes on what was taken.
func (t *trimmer) pass() error {
	_, err := t.out.Write(t.taken)
	t.taken = t.taken[:0]
	return err
}

// state copies a state up to the end of the memory, and has the rest copied.
func (t *trimmer) state() error {
	magic, err := t.take(len(stateMagic))
	if err != nil || !bytes.Equal(magic, []byte(stateMagic)) {
		return errUnknownForm
	}
	for {
		if err := t.pass(); err != nil {
			return err
		}
		part, err := t.take(1)
		if err != nil {
			return err
		}
		switch part[0] {
		case partMachine:
			err = t.machine()
		case partStart, partMore, partEnd:
			err = t.memory(part[0])
		default:
			err = errUnknownForm
		}
		if err != nil {
			return err
		}
	}
}

// machine takes the name of the machine's type.
func (t *trimmer) machine() error {
	n, err := t.take32()
	if err != nil || n > 256 {
		return errUnknownForm
	}
	_, err = t.take(int(n))
	return err
}

// memory copies one part of the memory.
func (t *trimmer) memory(part byte) error {
	number, err := t.take32()
	if err != nil {
		return err
	}
	if part == partStart {
		if err := t.start(); err != nil {
			return err
		}
		t.part, t.begun = number, true
	}
	if !t.begun || number != t.part {
		return errUnknownForm
	}
	for last := false; !last; {
		if err := t.pass(); err != nil {
			return err
		}
		var err error
		if last, err = t.record(); err != nil {
			return err
		}
	}
	if part == partEnd {
		return errUnknownForm // what follows is no memory
	}
	if next, err := t.in.Peek(1); err == nil && next[0] == partFooter {
		_, err = t.take(1 + 4)
		return err
	}
	return nil
}

// start takes what is told of a device before its first part.
func (t *trimmer) start() error {
	name, err := t.takeName()
	if err != nil || name != memoryDevice {
		return errUnknownForm
	}
	if _, err := t.take32(); err != nil { // which of its kind
		return err
	}
	if version, err := t.take32(); err != nil || version != memoryVersion {
		return errUnknownForm
	}
	return nil
}

// record takes one record of memory, or none of one that is to be left out.
func (t *trimmer) record() (last bool, err error) {
	head, err := t.take64()
	if err != nil {
		return false, err
	}
	flags := head % recordPageSize
	switch flags {
	case recordLast:
		return true, nil
	case recordSizes:
		return false, t.sizes(head - flags)
	}
	same := flags&recordSame != 0
	if !same {
		if t.block, err = t.takeName(); err != nil {
			return false, err
		}
	}
	if flags&^recordSame == recordZero {
		fill, err := t.take(1)
		if err == nil && fill[0] == 0 && mainMemory(t.block) {
			t.taken = t.taken[:0]
			return false, nil
		}
	}
	t.tell(head, same)
	switch flags &^ recordSame {
	case recordZero:
	case recordPage:
		_, err = t.take(recordPageSize)
	default:
		err = errUnknownForm
	}
	return false, err
}

// tell has a record say which block it is of, where that was said by one that was
// left out.
func (t *trimmer) tell(head uint64, same bool) {
	if same && t.told != t.block {
		rest := slices.Clone(t.taken[8:])
		t.taken = binary.BigEndian.AppendUint64(t.taken[:0], head&^recordSame)
		t.taken = append(t.taken, byte(len(t.block)))
		t.taken = append(append(t.taken, t.block...), rest...)
	}
	t.told = t.block
}

// sizes takes the names and the lengths of all blocks, which make up the total.
func (t *trimmer) sizes(total uint64) error {
	for left := total; left > 0; {
		if _, err := t.takeName(); err != nil {
			return err
		}
		n, err := t.take64()
		if err != nil || n == 0 || n > left {
			return errUnknownForm
		}
		left -= n
	}
	return nil
}

// mainMemory tells the block that is zero when QEMU has just started: others hold
// firmware.
func mainMemory(block string) bool { return block == "pc.ram" || block == "microvm.ram" }

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/vmrun/vmrun/vm"
)

// numberMark stands for a number in --name.
const numberMark = "%d"

// checkTemplate finds what is wrong with --name beyond what a name may be.
func checkTemplate(name string) error {
	if rest := strings.Replace(name, numberMark, "", 1); strings.Contains(rest, "%") {
		return fmt.Errorf("%q has a %% that is not the one %s", name, numberMark)
	}
	return nil
}

// names yields the names to try for --name: the one, or those with the numbers
// that nobody has.
type names struct {
	template string
	host     vm.Host
	last     int
}

// attempts is how often another run may be quicker to take a free number.
const attempts = 100

// next is the next name to try. There are no more where the name has no number.
func (n *names) next(ctx context.Context) (string, error) {
	if !strings.Contains(n.template, numberMark) {
		n.last++
		if n.last > 1 {
			return "", errNoNames
		}
		return n.template, nil
	}
	for range attempts {
		n.last++
		name := strings.Replace(n.template, numberMark, strconv.Itoa(n.last), 1)
		_, err := vm.Open(ctx, n.host, name)
		if _, unknown := errors.AsType[*vm.UnknownError](err); unknown {
			return name, nil
		}
		if err != nil {
			return "", err
		}
	}
	return "", errNoNames
}

var errNoNames = errors.New("no name is left to try")

// isTaken tells whether a launch failed for another machine of its name.
func isTaken(err error) bool {
	if told, ok := errors.AsType[supervisorError](err); ok {
		return told.Taken
	}
	lack, ok := errors.AsType[*vm.HostError](err)
	return ok && (lack.Need == vm.NeedName || lack.Need == vm.NeedRemoval)
}

// settings are the profile's keys that the flags set, with a name.
func (o runOptions) settings(name string) []string {
	if name == "" {
		return o.set
	}
	return append(o.set[:len(o.set):len(o.set)], "name="+strconv.Quote(name))
}

package main

import (
	"fmt"
	"time"
)

const (
	// progressAfter is how long something may take without a word.
	progressAfter = 500 * time.Millisecond
	spinInterval  = 100 * time.Millisecond
)

var spinner = []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")

// progress says what is being waited for, if it takes long: on a terminal in a
// line that moves and goes when the wait ends, elsewhere once. The returned
// function ends the wait.
func (r *runner) progress(what string) (done func()) {
	if r.options.quiet {
		return func() {}
	}
	if !r.spins {
		t := time.AfterFunc(progressAfter, func() { r.log.Info(what) })
		return func() { t.Stop() }
	}
	over, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		r.spin(what, over)
	}()
	return func() {
		close(over)
		<-gone
	}
}

// spin shows a line that moves until it is over.
func (r *runner) spin(what string, over <-chan struct{}) {
	begin := time.Now()
	next := time.After(progressAfter)
	defer r.stderr.status("")
	for i := 0; ; i++ {
		select {
		case <-next:
		case <-over:
			return
		}
		r.stderr.status(fmt.Sprintf("%c %s (%d s)", spinner[i%len(spinner)], what, int(time.Since(begin).Seconds())))
		next = time.After(spinInterval)
	}
}

//go:build !race

package sandbox

// raceDetector tells whether this binary has it: its memory map is beyond what
// User-Mode Linux can make.
const raceDetector = false

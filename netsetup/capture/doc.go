// Package capture records the frames that pass an interface, as a VM's TAP, in
// the format that packet analysers read. It needs no program but this one.
//
//   - Open listens on an interface; a Source gives one frame by each Read.
//   - ParseFilter reads the expressions that tcpdump's users know, and a Filter
//     tells the frames that are wanted.
//   - A Writer makes a pcapng file of what one or more sources give.
package capture

// Command testinit is a micro guest's init and nothing else, for the tests that
// boot one.
package main

import "github.com/vmrun/vmrun/images/guest"

func main() { guest.Main() }

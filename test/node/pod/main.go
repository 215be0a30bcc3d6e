// Program pod is all that is in the rig's images: it waits to be told to end.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, os.Interrupt)
	fmt.Fprintln(os.Stdout, "running")
	<-end
}

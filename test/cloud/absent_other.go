//go:build !linux

package cloud

import "net/http"

// unreachable is a URL where nobody answers. The connection is made, which is what can be had on loopback here.
func (c *Cloud) unreachable() string {
	return c.mustListen("absent", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		c.hang(r)
		panic(http.ErrAbortHandler)
	}))
}

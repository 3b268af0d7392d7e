// Package loopback finds ports on 127.0.0.1 that can be closed for a while and opened again.
package loopback

import (
	"fmt"
	"math/rand/v2"
	"net"
)

// Listen takes a port below those that the kernel gives to outgoing connections: while nobody listens on it, none of
// them can take its place.
func Listen() (net.Listener, error) {
	var err error
	for range 100 {
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000))); err == nil {
			return l, nil
		}
	}
	return nil, err
}

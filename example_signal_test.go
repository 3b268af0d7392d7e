//go:build unix

package leasehold_test

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/leasehold-go/leasehold"
)

// SIGTERM ends the context of signal.NotifyContext, and with it the session's. The lease is still renewed while the
// body winds down, and released when it has returned.
func ExampleSessions_signal() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once

	for s := range leasehold.Sessions(ctx,
		leasehold.WithLease("reconciler"),
		leasehold.WithNamespace("default"),
		cluster(),
	) {
		syscall.Kill(os.Getpid(), syscall.SIGTERM) // in a pod, the kubelet does this
		<-s.Done()
		fmt.Println("winding down:", context.Cause(s.Context()))
	}
	fmt.Println("lease released")
	// Output:
	// winding down: terminated signal received
	// lease released
}

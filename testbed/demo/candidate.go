package main

import (
	"context"
	"time"

	"github.com/leasehold-go/leasehold"
)

// campaign is all that a program needs to work only while it holds a lease; a candidate is this loop and nothing more.
// It finds the API server as kubectl does, by $KUBECONFIG.
func campaign(ctx context.Context, work func(leasehold.Session) error) error {
	var err error
	for s := range leasehold.Sessions(ctx,
		leasehold.WithLease(leaseName),
		leasehold.WithDuration(leaseDuration),
		leasehold.WithError(&err),
	) {
		if err := work(s); err != nil {
			return err
		}
	}
	return err
}

const (
	leaseName     = "demo"
	leaseDuration = 5 * time.Second
	renewDeadline = leaseDuration * 8 / 10 // the library's default
)

package leasectrl

import (
	"context"
	"net/http"
	"slices"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/leasehold-go/leasehold"
)

// Run runs a manager in each session of a lease, for controllers that are not sharded. newManager makes it and adds the
// controllers to it; a manager cannot be started twice. Its options are those that [ManagerOptions] returns: without
// its own leader election, and with a Start that returns only after the controllers did. Then the lease is released.
//
// Run returns context.Cause(ctx) when ctx ended it, the error of newManager, the error with which a manager ended while
// this process led, or why the campaign ended (leasehold.Sessions). WithError is not needed.
func Run(
	ctx context.Context, newManager func(leasehold.Session) (manager.Manager, error), opts ...leasehold.Option,
) error {
	var ended error
	for s := range leasehold.Sessions(ctx, append(slices.Clip(opts), leasehold.WithError(&ended))...) {
		m, err := newManager(s)
		if err != nil {
			return err
		}
		err = m.Start(s.Context())
		m.GetHTTPClient().CloseIdleConnections()
		if err != nil && s.Err() == nil {
			return err
		}
	}
	return ended
}

// ManagerOptions returns o with what a manager needs whose process leads by leasehold, or shards by a ring: no leader
// election of its own; a Start that waits for its controllers however long they take to stop; and controllers that may
// have the names of those of an earlier manager. Unless o says otherwise they do not use the priority queue, with
// which a controller may never stop (https://github.com/kubernetes-sigs/controller-runtime/issues/3538).
func ManagerOptions(o manager.Options) manager.Options {
	o.LeaderElection = false
	o.GracefulShutdownTimeout = new(time.Duration(-1))
	o.Controller.SkipNameValidation = new(true)
	if o.Controller.UsePriorityQueue == nil {
		o.Controller.UsePriorityQueue = new(false)
	}
	return o
}

// Checker returns m.Check as a liveness check for manager.AddHealthzCheck. It fails when only a restart of the process
// helps: work outlives its lease, or a campaign is stuck.
func Checker(m *leasehold.Monitor) healthz.Checker { return m.Check }

// Guard returns a transport that refuses a request whose context is that of a reconcile, or of a session, once the
// bucket or lease is not certainly this process's any more. Others pass. It fits rest.Config.Wrap, for the client that
// reconcilers write with.
func Guard(next http.RoundTripper) http.RoundTripper {
	if next == nil {
		next = http.DefaultTransport
	}
	return guard{next}
}

type guard struct{ next http.RoundTripper }

func (g guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if s, ok := leasehold.FromContext(req.Context()); ok {
		return s.Guard(g.next).RoundTrip(req)
	}
	return g.next.RoundTrip(req)
}

// WrappedRoundTripper lets client-go find what it closes idle connections of.
func (g guard) WrappedRoundTripper() http.RoundTripper { return g.next }

// CloseIdleConnections closes those of the next transport, for http.Client.
func (g guard) CloseIdleConnections() {
	(&http.Client{Transport: g.next}).CloseIdleConnections()
}

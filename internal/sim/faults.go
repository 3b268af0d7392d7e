package sim

import (
	"errors"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/watch"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/leasehold-go/leasehold/leasetest"
)

// A faultWindow is a time when requests of one link, or all, fail or are slow.
type faultWindow struct {
	kind     faultKind
	from, to time.Duration
	link     int     // or one of the following
	odds     float64 // that a request is hit
	delay    time.Duration
	variant  bool // of the kind
}

const (
	everyLink  = -1
	holderLink = -2 // of the process that holds the lease at the time
)

type faultKind int

const (
	delaying  faultKind = iota // each message takes another time, at most delay
	losing                     // requests or replies are lost
	refusing                   // the server answers with errors
	unreached                  // connection refused
	hanging                    // requests or replies are lost, and nothing says so
	anyKinds                   // how many kinds there are up to here

	slow       // a long link: each message takes delay
	jittering  // each message takes another time up to delay
	asymmetric // messages in one direction take delay: to the server or, the variant, from it
	notFound   // a proxy answers 404: about nothing that it names or, the variant, about the Lease
)

func (k faultKind) String() string {
	return []string{"delaying", "losing", "refusing", "unreached", "hanging", "", "slow", "jittering", "asymmetric",
		"404"}[k]
}

func (w *World) newFaultWindow(r rng, from, longest time.Duration) faultWindow {
	f := faultWindow{kind: faultKind(r.IntN(int(anyKinds))), from: from, odds: 0.2 + 0.8*r.Float64()}
	f.to = min(w.faultsEnd, f.from+r.logUniform(time.Second, 3*longest))
	f.delay = r.logUniform(50*time.Millisecond, longest)
	f.link = w.anyLink(r)
	return f
}

// anyLink returns what the link of a fault window may be.
func (w *World) anyLink(r rng) int {
	switch {
	case r.chance(0.4):
		return r.IntN(len(w.links))
	case r.chance(0.5):
		return holderLink
	}
	return everyLink
}

// newSlowWindow returns a window in which a link is a bad one, for long.
func (w *World) newSlowWindow(r rng, from, longest time.Duration) faultWindow {
	f := faultWindow{kind: slow + faultKind(r.IntN(3)), from: from, odds: 1, link: w.anyLink(r), variant: r.chance(0.5)}
	f.to = min(w.faultsEnd, f.from+r.logUniform(longest, 20*longest))
	f.delay = r.logUniform(20*time.Millisecond, longest/4)
	return f
}

// newNotFoundWindow returns a window in which a proxy answers 404, about half a second long.
func (w *World) newNotFoundWindow(r rng, from time.Duration) faultWindow {
	f := faultWindow{kind: notFound, from: from, odds: 1, link: w.anyLink(r), variant: r.chance(0.5)}
	f.to = min(w.faultsEnd, f.from+r.logUniform(100*time.Millisecond, 2*time.Second))
	return f
}

// covers reports whether a link is within the window at a time.
func (f faultWindow) covers(l *link, at time.Duration) bool {
	if at < f.from || at >= f.to {
		return false
	}
	switch f.link {
	case everyLink:
		return true
	case holderLink:
		return l.world.holderLink.Load() == l
	}
	return l.world.links[f.link] == l
}

// windowsOf calls f with the windows that a link is within at a time.
func (w *World) windowsOf(l *link, at time.Duration, f func(faultWindow)) {
	for _, window := range w.windows {
		if window.from > at {
			return
		}
		if window.covers(l, at) {
			f(window)
		}
	}
}

// A requestFault is what becomes of one request.
type requestFault struct {
	leasetest.Fault
	pause time.Duration // for which the server asks to be left alone
	gone  bool          // the answer says falsely that the Lease does not exist
}

// requestFault decides what becomes of a request.
func (w *World) requestFault(l *link, req leasetest.Request) leasetest.Fault {
	at := w.now()
	r := newRNG(w.seed, 2, l.id, uint64(at), uint64(req.Verb[0])<<8|uint64(len(req.Verb)))
	f := requestFault{Fault: leasetest.Fault{
		Before: r.uniform(w.latency/4, w.latency), After: r.uniform(w.latency/4, w.latency),
	}}
	if at >= w.faultsEnd {
		return f.Fault
	}
	w.windowsOf(l, at, func(window faultWindow) {
		if r.chance(window.odds) {
			f.add(r, req, window)
		}
	})
	random := faultWindow{kind: faultKind(r.IntN(int(anyKinds))), delay: 2 * time.Second}
	if r.chance(0.005) { // outside of all windows too
		f.add(r, req, random)
	}
	if (req.Verb == "apply" || req.Verb == "create") && l.id < uint64(len(w.candidates)) && r.chance(0.02) {
		c := w.candidates[l.id]
		d := r.logUniform(c.renewDeadline/10, 2*c.duration)
		time.AfterFunc(f.Before+f.After/2, func() { c.suspend(d) }) // while the reply is on its way
	}
	if f.gone && f.Err != nil && apierrors.IsNotFound(f.Err) {
		l.toldGone.Store(int64(at))
	}
	l.note(at, req, f.Fault)
	last := at
	if f.Late {
		last += f.Before
	}
	if f.pause > 0 {
		last += f.Before + f.After + f.pause
	}
	w.faultLasts(last)
	return f.Fault
}

// add adds a fault of the kind of window.
func (f *requestFault) add(r rng, req leasetest.Request, window faultWindow) {
	write := req.Verb != "get" && req.Verb != "watch"
	switch window.kind {
	case delaying:
		f.Before += r.logUniform(time.Millisecond, window.delay)
		f.After += r.logUniform(time.Millisecond, window.delay)
		f.Late = write && r.chance(0.5)
	case losing:
		f.Drop = leasetest.Drop(1 + r.IntN(2))
		f.Err = []error{nil, leasetest.ConnectionReset(), leasetest.EOF(), leasetest.NetTimeout()}[r.IntN(4)]
	case unreached:
		f.Err = leasetest.ConnectionRefused()
	case hanging:
		f.Drop, f.Err = leasetest.Drop(1+r.IntN(2)), nil
	case refusing:
		f.refuse(r, req, write)
	case slow, jittering, asymmetric:
		f.Before += window.travel(r, false)
		f.After += window.travel(r, true)
	case notFound:
		f.Drop = 0
		f.Err = apierrors.NewGenericServerResponse(404, req.Verb, coordinationv1.Resource("leases"), name,
			"404 page not found", 0, true)
		if window.variant {
			f.Err, f.gone = apierrors.NewNotFound(coordinationv1.Resource("leases"), name), true
		}
	}
}

// travel returns for how much longer a message travels in the window, to the server or from it.
func (f faultWindow) travel(r rng, fromServer bool) time.Duration {
	switch {
	case f.kind == slow, f.kind == asymmetric && f.variant == fromServer:
		return f.delay
	case f.kind == jittering:
		return r.uniform(0, f.delay)
	}
	return 0
}

// refuse adds an error that the server answers with. One that says that nothing was done is true, also if the request
// was hit by another fault before.
func (f *requestFault) refuse(r rng, req leasetest.Request, write bool) {
	switch {
	case r.chance(0.4): // the server fails, before the write or after it
		f.Err = []error{leasetest.InternalError(), leasetest.ServerTimeout(), leasetest.ServiceUnavailable()}[r.IntN(3)]
		if r.chance(0.5) {
			f.Drop = leasetest.TheReply
		}
	case r.chance(0.5):
		seconds := time.Duration(1+r.IntN(5)) * time.Second
		f.Err, f.Drop, f.pause = leasetest.TooManyRequests(seconds), 0, seconds
	case write && r.chance(0.5):
		f.Err = apierrors.NewConflict(coordinationv1.Resource("leases"), name, errors.New("the server says so"))
		f.Drop = 0
	case r.chance(0.5):
		f.Err, f.Drop = leasetest.Unauthorized(), 0
	default:
		f.Err, f.Drop = leasetest.Forbidden(req), 0
	}
}

// eventDelay decides how long a watch event takes.
func (w *World) eventDelay(l *link, version string) time.Duration {
	at := w.now()
	h := uint64(0)
	for _, b := range []byte(version) {
		h = h*31 + uint64(b)
	}
	r := newRNG(w.seed, 3, l.id, uint64(at), h)
	delay := r.uniform(w.latency/4, w.latency)
	if at >= w.faultsEnd {
		return delay
	}
	w.windowsOf(l, at, func(window faultWindow) {
		if window.kind == delaying {
			delay += r.logUniform(time.Millisecond, window.delay)
		}
		delay += window.travel(r, true)
	})
	w.faultLasts(at + delay)
	return delay
}

// A link is the way of one process to the API server.
type link struct {
	world  *World
	name   string
	id     uint64
	client *leasetest.Client
	leases coordinationv1client.LeaseInterface

	sentDuringFaults atomic.Int64 // requests in flight that were sent before the faults stopped
	lastFault        atomic.Int64 // when anything last went wrong with a request, the link or the clock
	toldGone         atomic.Int64 // when it was last told falsely that the Lease does not exist
	cuts             atomic.Int64 // by how many faults it is cut off
}

func (w *World) newLink(name string) *link {
	l := &link{world: w, name: name, id: uint64(len(w.links))}
	w.links = append(w.links, l)
	return l
}

func (l *link) connect() {
	l.client = l.world.srv.Client(l.name)
	l.leases = l.client.Leases(namespace)
	l.client.OnRequest(func(r leasetest.Request) leasetest.Fault { return l.world.requestFault(l, r) })
	l.client.OnEvent(func(e watch.Event) time.Duration {
		version := ""
		if lease, ok := e.Object.(*coordinationv1.Lease); ok {
			version = lease.ResourceVersion
		}
		return l.world.eventDelay(l, version)
	})
}

// send records that a request is sent. The caller calls done when it has ended.
func (l *link) send() (done func()) {
	if l.world.now() >= l.world.faultsEnd {
		return func() {}
	}
	l.sentDuringFaults.Add(1)
	return func() { l.sentDuringFaults.Add(-1) }
}

// cut cuts the link off, or ends that.
func (l *link) cut(off bool) {
	if off {
		l.cuts.Add(1)
	} else {
		l.cuts.Add(-1)
	}
	l.lastFault.Store(int64(l.world.now()))
	l.client.Partition(l.cuts.Load() > 0)
}

// faultAt returns when anything last went wrong here that might keep a holder from renewing.
func (l *link) faultAt() time.Duration {
	if l.cuts.Load() > 0 {
		return l.world.now()
	}
	return time.Duration(l.lastFault.Load())
}

// note records the fault of a request, if there is one.
func (l *link) note(at time.Duration, r leasetest.Request, f leasetest.Fault) {
	if f.Drop == leasetest.Nothing && f.Err == nil && f.Before+f.After <= 2*l.world.latency {
		return
	}
	l.lastFault.Store(int64(at))
	what := ""
	switch f.Drop {
	case leasetest.TheRequest:
		what = ", the request is lost"
	case leasetest.TheReply:
		what = ", the reply is lost"
	}
	if f.Late {
		what += ", takes effect although given up"
	}
	l.world.checker.detail(l.name, "%s: %v there, %v back%s: %v", r.Verb, f.Before, f.After, what, f.Err)
}

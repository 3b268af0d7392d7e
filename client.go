package leasehold

import (
	"bytes"
	"context"
	"maps"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sync/semaphore"
	"k8s.io/client-go/rest"

	"github.com/leasehold-go/leasehold/internal/connpool"
)

// A sharedClient is a client of the API server that the campaigns of a process with the same settings share, for as
// long as any of them lasts. No client-side rate limit slows it, and a connection that stopped answering is
// replaced.
type sharedClient struct {
	leases     func(namespace string) Leases
	namespaces sync.Map       // what leases returned, by namespace
	pool       *connpool.Pool // nil for a client or a transport that is the caller's

	// What it was made of. Campaigns that have the same may share it.
	client   *userClient
	config   *rest.Config // a snapshot
	interval time.Duration

	permits *semaphore.Weighted // of requests that are no renewals
	failing atomic.Int32        // how many campaigns have failing requests
	answers answerTimes

	users   int                     // protected by clients
	watches map[string]*sharedWatch // in use, by namespace; protected by clients
}

// A userClient is what WithClient was given.
type userClient struct {
	value  any
	leases func(namespace string) Leases
}

// clients are the shared clients in use.
var clients struct {
	sync.Mutex
	inUse []*sharedClient
}

// maxInFlight bounds how many requests of a client are under way, renewals aside. What thousands of leases ask for
// in one moment, when a process starts, stops or takes over from another, waits here, where it costs nothing
// and no timeout runs, rather than in the API server, where renewals would wait behind it.
const maxInFlight = 50

// openClient returns the client over client or, if that is nil, as config says, for a lease that is renewed every
// interval. The caller closes it in the end.
func openClient(client *userClient, config *rest.Config, interval time.Duration) (*sharedClient, error) {
	if s := joinClient(client, config, interval, nil); s != nil {
		return s, nil
	}
	s := &sharedClient{
		client:   client,
		interval: interval,
		permits:  semaphore.NewWeighted(maxInFlight),
		watches:  map[string]*sharedWatch{},
	}
	if client == nil {
		// It runs the user's code, so that nobody else waits for it.
		s.config = snapshot(config)
		if err := s.connect(s.config); err != nil {
			return nil, err
		}
	} else {
		s.leases = client.leases
	}
	return joinClient(client, config, interval, s), nil
}

// joinClient adds a user to the client in use that fits, else to made, unless that is nil.
func joinClient(client *userClient, config *rest.Config, interval time.Duration, made *sharedClient) *sharedClient {
	clients.Lock()
	defer clients.Unlock()
	s := made
	fits := func(s *sharedClient) bool { return s.fits(client, config, interval) }
	if i := slices.IndexFunc(clients.inUse, fits); i >= 0 {
		s = clients.inUse[i]
	} else if made != nil {
		clients.inUse = append(clients.inUse, made)
	}
	if s != nil {
		s.users++
	}
	return s
}

// close removes a user, if it is the first call for that user. Nothing is left of the client when the last one is
// gone. After another request it is called again.
func (s *sharedClient) close(first bool) {
	clients.Lock()
	if first {
		s.users--
	}
	unused := s.users == 0
	if unused {
		clients.inUse = slices.DeleteFunc(clients.inUse, func(other *sharedClient) bool { return other == s })
	}
	clients.Unlock()
	if unused && s.pool != nil {
		s.pool.Close()
	}
}

// leasesIn returns the Leases of a namespace, which all campaigns there share.
func (s *sharedClient) leasesIn(namespace string) Leases {
	l, ok := s.namespaces.Load(namespace)
	if !ok {
		l, _ = s.namespaces.LoadOrStore(namespace, s.leases(namespace))
	}
	leases, _ := l.(Leases) // nil, if WithClient was given a client that has none
	return leases
}

// server returns what tells the API server from others: its address, or a client of which that is not known.
func (s *sharedClient) server() any {
	if s.client == nil {
		return s.config.Host
	}
	if c, ok := s.client.value.(interface{ RESTClient() rest.Interface }); ok {
		if r, _ := c.RESTClient().(*rest.RESTClient); r != nil {
			return r.Get().URL().String()
		}
	}
	if !reflect.ValueOf(s.client.value).Comparable() {
		return reflect.TypeOf(s.client.value)
	}
	return s.client.value
}

// permit waits for one of the places of requests that are no renewals. The caller calls done when its request has
// ended, and before it waits for another permit. The error is the cause of the end of ctx.
func (s *sharedClient) permit(ctx context.Context) (done func(), err error) {
	done = func() { s.permits.Release(1) }
	if s.permits.TryAcquire(1) {
		return done, nil
	}
	if err := s.permits.Acquire(ctx, 1); err != nil {
		return nil, context.Cause(ctx)
	}
	return done, nil
}

// fits reports whether a client that is made now would be the same.
func (s *sharedClient) fits(client *userClient, config *rest.Config, interval time.Duration) bool {
	switch {
	case s.interval != interval:
		return false
	case client != nil:
		return s.client != nil && sameValue(s.client.value, client.value)
	}
	return s.client == nil && sameSettings(s.config, config)
}

// sameSettings reports whether two configurations connect alike, and as the same user. Their addresses do not say:
// without WithRESTConfig each campaign loads its own configuration, and a program may change one in place, its token or
// user for example, from one campaign to the next.
func sameSettings(a, b *rest.Config) bool {
	if !sameFunc(a.WrapTransport, b.WrapTransport) || !sameFunc(a.Dial, b.Dial) || !sameFunc(a.Proxy, b.Proxy) ||
		!sameValue(a.Transport, b.Transport) || !sameValue(a.AuthConfigPersister, b.AuthConfigPersister) ||
		!sameValue(a.WarningHandler, b.WarningHandler) ||
		!sameValue(a.WarningHandlerWithContext, b.WarningHandlerWithContext) {
		return false
	}
	x, y := *a, *b
	for _, c := range []*rest.Config{&x, &y} {
		c.WrapTransport, c.Dial, c.Proxy = nil, nil, nil
		c.Transport, c.AuthConfigPersister, c.WarningHandler, c.WarningHandlerWithContext = nil, nil, nil, nil
		c.NegotiatedSerializer, c.RateLimiter, c.QPS, c.Burst, c.Timeout = nil, nil, 0, 0, 0 // not used
	}
	return reflect.DeepEqual(x, y)
}

// sameValue reports whether two interfaces hold the same value. Values that cannot be compared are not the same.
func sameValue(a, b any) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return reflect.ValueOf(a).Comparable() && reflect.ValueOf(b).Comparable() && a == b
}

// sameFunc reports whether a and b are one function with the same variables. Equal code, which is what reflect
// and fmt know, is not enough: one may be another user's.
func sameFunc[F any](a, b F) bool {
	return *(*unsafe.Pointer)(unsafe.Pointer(&a)) == *(*unsafe.Pointer)(unsafe.Pointer(&b))
}

// snapshot returns a copy of config that does not change when config does.
func snapshot(config *rest.Config) *rest.Config {
	c := *config
	c.AuthProvider, c.ExecProvider = c.AuthProvider.DeepCopy(), c.ExecProvider.DeepCopy()
	c.Impersonate.Groups = slices.Clone(c.Impersonate.Groups)
	c.Impersonate.Extra = maps.Clone(c.Impersonate.Extra)
	for key, values := range c.Impersonate.Extra {
		c.Impersonate.Extra[key] = slices.Clone(values)
	}
	c.CertData, c.KeyData, c.CAData = bytes.Clone(c.CertData), bytes.Clone(c.KeyData), bytes.Clone(c.CAData)
	c.NextProtos = slices.Clone(c.NextProtos)
	return &c
}

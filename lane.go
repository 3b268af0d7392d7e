package leasehold

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sync/semaphore"
	"k8s.io/apimachinery/pkg/runtime"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/transport"

	"github.com/leasehold-go/leasehold/internal/connpool"
)

// A lane is a way to the API server: nothing but campaigns with the same settings uses it, no
// client-side rate limit slows it, and a connection that stopped answering is replaced. The campaigns
// of a process that would make their lanes alike share one, for as long as any of them lasts.
type lane struct {
	leases coordinationv1client.LeasesGetter
	pool   *connpool.Pool // nil for a client or a transport that is the caller's

	// What it was made of. Others that have the same may share it.
	client   coordinationv1client.LeasesGetter
	config   *rest.Config // a snapshot
	interval time.Duration

	turns    *semaphore.Weighted // of requests that are no renewals
	renewals *semaphore.Weighted // of renewals; has places for many more users, taken until they come
	waiting  atomic.Int32        // how many wait for a turn
	answers  answerTimes
	waited   atomic.Int64 // when the last who had to wait had a turn
	outcry   outcry

	users int             // protected by lanes
	most  int             // users ever; protected by lanes
	hubs  map[string]*hub // of those in use, by namespace; protected by lanes
}

// lanes are those in use.
var lanes struct {
	sync.Mutex
	inUse []*lane
}

// enterLane returns the lane over client or, if that is nil, as config says, for a lease that is
// renewed every interval. The caller leaves it in the end.
func enterLane(client coordinationv1client.LeasesGetter, config *rest.Config, interval time.Duration) (*lane, error) {
	lanes.Lock()
	defer lanes.Unlock()
	for _, l := range lanes.inUse {
		if l.fits(client, config, interval) {
			l.enter()
			return l, nil
		}
	}
	l := &lane{leases: client, client: client, interval: interval, hubs: map[string]*hub{},
		turns: semaphore.NewWeighted(atOnce), renewals: semaphore.NewWeighted(math.MaxInt64)}
	l.renewals.TryAcquire(math.MaxInt64 - renewalsAtOnce)
	l.enter()
	if client == nil {
		l.config = snapshot(config)
		if err := l.connect(l.config); err != nil {
			return nil, err
		}
	}
	lanes.inUse = append(lanes.inUse, l)
	return l, nil
}

// enter notes one more user. The caller holds lanes.
func (l *lane) enter() {
	l.users++
	if l.users > l.most {
		l.most = l.users
		if l.most > renewalsAtOnce*renewersPerPlace && l.most%renewersPerPlace == 0 {
			l.renewals.Release(1) // one more place
		}
	}
}

// How many requests of a lane may be under way. What thousands of leases ask for in one moment, when a
// process starts, stops or takes over from another, waits here, where it costs nothing and no timeout
// runs, rather than in the API server, where renewals would wait behind it. Renewals have places of
// their own, which are more than a server needs that answers in time: where it does not, and each
// renewal was sent again when its timeout has passed, the server would have ever more to do.
//
// Where it takes long to answer, places would run out with many leases, so that there are more then: one for
// every 8. All are renewed in R if an answer takes R/8, and within I if it takes I/8. A server that can do
// no more than to renew all in R answers in R/8 too, before the timeout, which is (R-I)/4.
const (
	atOnce           = 50
	renewalsAtOnce   = 200
	renewersPerPlace = 8
)

// turn returns when a request may be made that is no renewal; done is called when it has ended, and
// before another turn is waited for.
func (l *lane) turn(ctx context.Context) (done func(), err error) {
	done = func() { l.turns.Release(1) }
	if l.turns.TryAcquire(1) {
		return done, nil
	}
	l.waiting.Add(1)
	defer l.waiting.Add(-1)
	defer func() { l.waited.Store(time.Now().UnixNano()) }()
	if err := l.turns.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	return done, nil
}

// crowded tells whether somebody has waited for a turn in the last while.
func (l *lane) crowded(while time.Duration) bool {
	return l.waiting.Load() > 0 || time.Now().UnixNano()-l.waited.Load() < int64(while)
}

// leave gives the lane up for c. Nothing is left of it when the last campaign has. It may be called
// again after another request was made.
func (l *lane) leave(c *campaign) {
	lanes.Lock()
	if !c.left {
		c.left = true
		l.users--
	}
	unused := l.users == 0
	if unused {
		lanes.inUse = slices.DeleteFunc(lanes.inUse, func(other *lane) bool { return other == l })
	}
	lanes.Unlock()
	if unused && l.pool != nil {
		l.pool.Close()
	}
}

// fits tells whether the lane is as one would be that is made now.
func (l *lane) fits(client coordinationv1client.LeasesGetter, config *rest.Config, interval time.Duration) bool {
	switch {
	case l.interval != interval:
		return false
	case client != nil:
		return sameValue(l.client, client)
	}
	return l.client == nil && sameSettings(l.config, config)
}

// sameSettings tells whether two configurations connect alike, and as the same user.
func sameSettings(a, b *rest.Config) bool {
	if !sameFunc(a.WrapTransport, b.WrapTransport) || !sameFunc(a.Dial, b.Dial) || !sameFunc(a.Proxy, b.Proxy) ||
		!sameValue(a.Transport, b.Transport) || !sameValue(a.AuthConfigPersister, b.AuthConfigPersister) ||
		!sameValue(a.WarningHandler, b.WarningHandler) || !sameValue(a.WarningHandlerWithContext, b.WarningHandlerWithContext) {
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

// sameValue tells whether two interfaces have the same in them. What cannot be compared is not the same.
func sameValue(a, b any) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return reflect.ValueOf(a).Comparable() && reflect.ValueOf(b).Comparable() && a == b
}

// sameFunc tells whether a and b are one function, with the same variables. That two have the same code,
// which is what reflect and fmt know, is not enough: one may be another user's.
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

// connect makes the lane as config says.
func (l *lane) connect(config *rest.Config) error {
	config = rest.CopyConfig(config)
	config.RateLimiter, config.QPS, config.Timeout = nil, -1, 0
	if config.ContentType == "" && config.AcceptContentTypes == "" {
		// Of what many leases cost in a process, decoding JSON is most.
		config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	}
	if config.UserAgent == "" {
		config.UserAgent = rest.DefaultKubernetesUserAgent()
	}
	tc, err := config.TransportConfig()
	if err != nil {
		return err
	}
	base := tc.Transport
	if base == nil {
		newTransport := func() (*http.Transport, error) { return newTransport(tc, l.interval) }
		if _, err := newTransport(); err != nil {
			return err
		}
		l.pool = connpool.New(newTransport, l.interval)
		base = l.pool
	}
	if tc.BearerTokenFile != "" {
		base = &tokenFile{path: tc.BearerTokenFile, next: base, token: tc.BearerToken}
		tc.BearerToken, tc.BearerTokenFile = "", ""
	}
	rt, err := transport.HTTPWrappersForConfig(tc, base)
	if err != nil {
		return err
	}
	l.leases, err = coordinationv1client.NewForConfigAndClient(config, &http.Client{Transport: noRetry{rt}})
	return err
}

// newTransport returns what makes a connection as tc says. Files that tc names are read now: certificates
// are replaced now and then, also those of whom to trust.
func newTransport(tc *transport.Config, interval time.Duration) (*http.Transport, error) {
	now := *tc // TLSConfigFor puts into it what it has read
	tlsConfig, err := transport.TLSConfigFor(&now)
	if err != nil {
		return nil, err
	}
	proxy := http.ProxyFromEnvironment
	if tc.Proxy != nil {
		proxy = tc.Proxy
	}
	dial := (&net.Dialer{KeepAlive: interval}).DialContext
	if tc.DialHolder != nil {
		dial = tc.DialHolder.Dial
	}
	return &http.Transport{
		Proxy:              proxy,
		DialContext:        dial,
		TLSClientConfig:    tlsConfig,
		DisableCompression: true, // a Lease is smaller than what compressing it costs
		ForceAttemptHTTP2:  tlsConfig == nil || len(tlsConfig.NextProtos) == 0 || slices.Contains(tlsConfig.NextProtos, "h2"),
	}, nil
}

// kubeconfig is the configuration that kubectl would use here.
func kubeconfig() clientcmd.ClientConfig {
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		clientcmd.NewDefaultClientConfigLoadingRules(), nil)
}

// defaultConfig returns the in-cluster configuration or, outside a cluster, the kubeconfig's.
func defaultConfig() (*rest.Config, error) {
	config, err := rest.InClusterConfig()
	if !errors.Is(err, rest.ErrNotInCluster) {
		return config, err
	}
	config, err = kubeconfig().ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, errors.New("not in a cluster, and no kubeconfig at $KUBECONFIG or ~/.kube/config: " +
			"use WithRESTConfig or WithClient to say which API server holds the Lease")
	}
	return config, err
}

var namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace" // but for tests

// defaultNamespace returns the service account's namespace or, outside a cluster, that of the
// kubeconfig's context, else "default".
func defaultNamespace() (string, error) {
	if data, err := os.ReadFile(namespaceFile); err == nil {
		if ns := strings.TrimSpace(string(data)); ns != "" {
			return ns, nil
		}
	}
	ns, _, err := kubeconfig().Namespace()
	if err != nil && !clientcmd.IsEmptyConfig(err) {
		return "", fmt.Errorf("which namespace: %w", err)
	}
	if ns == "" {
		ns = "default"
	}
	return ns, nil
}

package leasehold

import (
	"context"
	"net"
	"net/http"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/transport"

	"github.com/leasehold-go/leasehold/leasetest"
)

// Campaigns share a client where theirs would be alike, and only there.
func TestClientShared(t *testing.T) {
	dial := func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }
	with := func(change func(*rest.Config)) *rest.Config {
		c := &rest.Config{Host: "https://203.0.113.1", BearerToken: "secret"}
		if change != nil {
			change(c)
		}
		return c
	}
	// Closures of one code, which differ only by what they have in them.
	var wraps []transport.WrapperFunc
	for _, user := range []string{"a", "b"} {
		wraps = append(wraps, func(next http.RoundTripper) http.RoundTripper {
			return transport.NewUserAgentRoundTripper(user, next)
		})
	}
	one, dialing := with(nil), with(func(c *rest.Config) { c.Dial = dial })
	changed, wrapping := with(nil), with(func(c *rest.Config) { c.WrapTransport = wraps[0] })
	running := with(func(c *rest.Config) {
		c.ExecProvider = &clientcmdapi.ExecConfig{Command: "true", Args: []string{"a"},
			APIVersion: "client.authentication.k8s.io/v1", InteractiveMode: "Never"}
	})
	grouped := with(func(c *rest.Config) {
		c.Impersonate = rest.ImpersonationConfig{UserName: "a", Groups: []string{"a"},
			Extra: map[string][]string{"a": {"a"}}}
	})
	extra := with(func(c *rest.Config) {
		c.Impersonate = rest.ImpersonationConfig{UserName: "a", Extra: map[string][]string{"a": {"a"}}}
	})
	defer func() {
		if n := len(clients.inUse); n != 0 {
			t.Errorf("%d clients are left", n)
		}
	}()
	for _, tt := range []struct {
		name     string
		a, b     *rest.Config
		interval time.Duration
		before   func()
		want     bool
	}{
		{"the same", one, one, I, nil, true},
		{"equal", with(nil), with(nil), I, nil, true},
		{"limits, which are not used", with(nil), with(func(c *rest.Config) {
			c.QPS, c.Timeout = 3, time.Hour
		}), I, nil, true},
		{"another interval", one, one, 2 * I, nil, false},
		{"another server", one, with(func(c *rest.Config) { c.Host = "https://203.0.113.2" }), I, nil, false},
		{"another user", one, with(func(c *rest.Config) { c.Impersonate.UserName = "b" }), I, nil, false},
		{"another token", one, with(func(c *rest.Config) { c.BearerToken = "b" }), I, nil, false},
		{"the same, with a function", dialing, dialing, I, nil, true},
		{"the same function", dialing, with(func(c *rest.Config) { c.Dial = dial }), I, nil, true},
		{"another function", wrapping, with(func(c *rest.Config) { c.WrapTransport = wraps[1] }), I, nil, false},
		{"the same, with another function meanwhile", wrapping, wrapping, I, func() {
			wrapping.WrapTransport = wraps[1]
		}, false},
		{"another transport", with(func(c *rest.Config) { c.Transport = &http.Transport{} }),
			with(func(c *rest.Config) { c.Transport = &http.Transport{} }), I, nil, false},
		{"the same, with another command meanwhile", running, running, I, func() {
			running.ExecProvider.Args[0] = "b"
		}, false},
		{"the same, with another group meanwhile", grouped, grouped, I, func() {
			grouped.Impersonate.Groups[0] = "b"
		}, false},
		{"the same, with another extra meanwhile", extra, extra, I, func() {
			extra.Impersonate.Extra["a"][0] = "b"
		}, false},
		{"the same, changed meanwhile", changed, changed, I, func() { changed.BearerToken = "b" }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			enter := func(config *rest.Config, interval time.Duration) *sharedClient {
				l, err := openClient(nil, config, interval)
				if err != nil {
					t.Fatal(err)
				}
				return l
			}
			a := enter(tt.a, I)
			defer a.close(true)
			if tt.before != nil {
				tt.before()
			}
			b := enter(tt.b, tt.interval)
			defer b.close(true)
			if (a == b) != tt.want {
				t.Errorf("shared: %v", a == b)
			}
		})
	}
	client := leasetest.NewServer().Client("a")
	var entered []*sharedClient
	for _, interval := range []time.Duration{I, 2 * I, I} {
		l, err := openClient(given(client), nil, interval)
		if err != nil {
			t.Fatal(err)
		}
		defer l.close(true)
		entered = append(entered, l)
	}
	if entered[0] == entered[1] || entered[0] != entered[2] {
		t.Error("a client is shared where the interval is another, or not where it is the same")
	}
}

// given returns what WithClient makes of client.
func given[L Leases](client interface{ Leases(namespace string) L }) *userClient {
	var o options
	WithClient(client)(&o)
	return o.client
}

// A client that cannot be compared is shared with nobody.
func TestClientNotComparable(t *testing.T) {
	type odd struct {
		*leasetest.Client
		_ []string
	}
	client := odd{Client: leasetest.NewServer().Client("a")}
	a, _ := openClient(given(client), nil, I)
	b, _ := openClient(given(client), nil, I)
	if a == b {
		t.Error("shared")
	}
	a.close(true)
	b.close(true)
}

// A restLeases is a client that knows its REST client.
type restLeases struct {
	client *rest.RESTClient
	_      []string // cannot be compared
}

func (c restLeases) RESTClient() rest.Interface { return c.client }

// What tells API servers apart: their addresses, with their paths, or else their clients.
func TestClientServer(t *testing.T) {
	to := func(host string) *rest.RESTClient {
		c, err := rest.RESTClientFor(&rest.Config{Host: host, ContentConfig: rest.ContentConfig{
			NegotiatedSerializer: serializer.NewCodecFactory(runtime.NewScheme()).WithoutConversion(),
			GroupVersion:         &coordinationv1.SchemeGroupVersion}})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	of := func(client any) any { return (&sharedClient{client: &userClient{value: client}}).server() }
	one := leasetest.NewServer()
	for _, tt := range []struct {
		name string
		a, b any
		want bool // the same server
	}{
		{"one client", of(one.Client("a")), of(one.Client("a")), true},
		{"two clients", of(one.Client("a")), of(leasetest.NewServer().Client("a")), false},
		{"one address", of(restLeases{client: to("https://a/x")}), of(restLeases{client: to("https://a/x")}), true},
		{"two paths", of(restLeases{client: to("https://a/x")}), of(restLeases{client: to("https://a/y")}), false},
		{"no address", of(&restLeases{}), of(&restLeases{}), false},
		{"clients that cannot be compared", of(restLeases{}), of(restLeases{}), true},
		{"configurations", (&sharedClient{config: &rest.Config{Host: "a"}}).server(),
			(&sharedClient{config: &rest.Config{Host: "a", BearerToken: "secret"}}).server(), true},
		{"two configurations", (&sharedClient{config: &rest.Config{Host: "a"}}).server(),
			(&sharedClient{config: &rest.Config{Host: "b"}}).server(), false},
	} {
		if same := tt.a == tt.b; same != tt.want {
			t.Errorf("%s: %v and %v are the same: %v", tt.name, tt.a, tt.b, same)
		}
	}
}

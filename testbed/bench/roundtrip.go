package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/testbed/internal/proxy"
)

// A link is a network whose round trip is long for a lease of that duration.
type link struct {
	roundTrip, duration time.Duration
}

// timing is how client-go is configured for a lease of that duration: in the proportions of its defaults.
func (l link) timing() timing {
	return timing{duration: l.duration, deadline: l.duration * 2 / 3, period: l.duration * 2 / 15}
}

// A linkSide is a candidate that is compared at a link, and how its row is named.
type linkSide struct {
	name string
	side side
}

var linkSides = []linkSide{
	{"client-go", runElector},
	{"leasehold", runLeasehold},
	{"leasehold WithClient", runWithClient},
}

// runWithClient campaigns through a typed client, whose connection and transport are client-go's own.
func runWithClient(ctx context.Context, c *candidate, cfg *rest.Config, t timing) (err error) {
	client, err := coordinationv1client.NewForConfig(cfg)
	if err != nil {
		return err
	}
	for s := range leasehold.Sessions(ctx,
		leasehold.WithClient(client), leasehold.WithNamespace(metav1.NamespaceDefault), leasehold.WithLease(c.lease),
		leasehold.WithIdentity(c.name), leasehold.WithDuration(t.duration), leasehold.WithError(&err),
		leasehold.WithLogger(slog.New(slog.DiscardHandler)),
	) {
		c.work(s.Context())
	}
	return err
}

// noise is the difference of two shares, in percent, that scheduling makes: 70 ms of 70 s.
const noise = 0.1

// roundTrip measures for how much of the time the only candidate of a lease leads, behind a proxy that delays the
// bytes of both directions by half a round trip. Acquiring the lease counts as time without it: a TLS handshake and
// two requests take three round trips. TCP's own handshake ends at the proxy, in no time.
func (b *bench) roundTrip() error {
	target, err := url.Parse(b.server.Config().Host)
	if err != nil {
		return err
	}
	candidates := make([][]*candidate, len(b.links)) // by link, then by side
	begun := time.Now()
	for i, l := range b.links {
		p, err := proxy.New(target.Host)
		if err != nil {
			return err
		}
		defer p.Close()
		p.Set(proxy.Rule{Delay: l.roundTrip / 2}, proxy.Rule{Delay: l.roundTrip / 2})
		for _, s := range linkSides {
			cfg := b.server.Config()
			cfg.Host = "https://" + p.Addr
			name := b.lease("far")
			candidates[i] = append(candidates[i], b.startSide(s.side, cfg, name, name, l.timing(), nil))
		}
	}
	if err := b.sleep(b.linked); err != nil {
		return err
	}
	ended := time.Now()
	var connections []string
	for i, l := range b.links {
		var shares []*summary
		for n, c := range candidates[i] {
			shares = append(shares, summarize(100*share(c.led, c.lost, begun, ended)))
			connections = append(connections, fmt.Sprintf("%s %d", linkSides[n].name, c.meter.dials.Load()))
		}
		what := fmt.Sprintf("led at a round trip of %v, D %v", l.roundTrip, l.duration)
		for n, of := range shares[1:] {
			r := row{What: what, Unit: "%", ClientGo: shares[0], Leasehold: of, Goal: ">= client-go"}
			if n > 0 {
				r.What += strings.TrimPrefix(linkSides[n+1].name, "leasehold") // names the option
			}
			b.report.add(r, func() bool { return of.P50 >= r.ClientGo.P50-noise })
		}
		b.report.note("round trip of %v, D %v: connections opened in %v: %s.", l.roundTrip, l.duration, b.linked,
			strings.Join(connections, ", "))
		connections = nil
	}
	for _, of := range candidates {
		for _, c := range of {
			c.crash() // a release over such a link says nothing that was not measured
			if _, err := receive(b, "end of a candidate", c.done); err != nil {
				return err
			}
		}
	}
	return nil
}

// share returns for how much of the time between begun and ended a candidate led, of 1.
func share(led, lost <-chan time.Time, begun, ended time.Time) float64 {
	var leading time.Duration
	for len(led) > 0 {
		from, to := <-led, ended
		select {
		case to = <-lost:
		default: // it still leads
		}
		leading += max(0, min(to.Sub(from), ended.Sub(from)))
	}
	return leading.Seconds() / ended.Sub(begun).Seconds()
}

package oracle

import (
	"strings"
	"testing"
	"time"
)

// Each scenario is told to a judge, which is to say what is wrong with it.
func TestKeys(t *testing.T) {
	work := func(worker string, session int, token uint64) *Work[int] {
		return &Work[int]{
			Key: "k", Worker: worker, Session: session, Token: token, Since: time.Duration(session) * time.Second,
		}
	}
	for _, c := range []struct {
		name string
		tell func(k *Keys[int])
		want string // "" if nothing is wrong
	}{
		{"one after the other", func(k *Keys[int]) {
			a := work("a", 1, 5)
			k.Begin(a)
			k.End(a)
			k.Begin(work("b", 2, 7))
		}, ""},
		{"two at a time", func(k *Keys[int]) {
			k.Begin(work("a", 1, 5))
			k.Begin(work("b", 2, 7))
		}, "b (token 7, since 2s) begins k beside a (token 5, since 1s)"},
		{"two sessions of one worker at a time", func(k *Keys[int]) {
			k.Begin(work("a", 1, 5))
			k.Begin(work("a", 2, 7))
		}, "a (token 7, since 2s) begins k beside a (token 5, since 1s)"},
		{"of three, the first goes on", func(k *Keys[int]) {
			b := work("b", 2, 7)
			b.Live = func() bool { return false }
			k.Begin(work("a", 1, 5))
			k.Begin(b)
			k.Begin(work("c", 3, 9))
		}, "c (token 9, since 3s) begins k beside a (token 5, since 1s)"},
		{"one after the other was found to be over", func(k *Keys[int]) {
			a, live := work("a", 1, 5), true
			a.Live = func() bool { return live }
			k.Begin(a)
			live = false
			k.Begin(work("b", 2, 7))
		}, ""},
		{"two keys", func(k *Keys[int]) {
			k.Begin(work("a", 1, 5))
			b := work("b", 2, 5)
			b.Key = "another"
			k.Begin(b)
		}, ""},
		{"a token that falls", func(k *Keys[int]) {
			a := work("a", 1, 7)
			k.Begin(a)
			k.End(a)
			k.Begin(work("b", 2, 5))
		}, "b (token 5, since 2s) begins k after a (token 7, since 1s), whose token is not smaller"},
		{"a token used twice", func(k *Keys[int]) {
			a := work("a", 1, 7)
			k.Begin(a)
			k.End(a)
			k.Begin(work("a", 2, 7))
		}, "a (token 7, since 2s) begins k after a (token 7, since 1s), whose token is not smaller"},
		{"again in one session", func(k *Keys[int]) {
			a := work("a", 1, 7)
			k.Begin(a)
			k.End(a)
			k.Begin(work("a", 1, 7))
		}, ""},
		{"a token below one of long ago", func(k *Keys[int]) {
			for i, token := range []uint64{9, 7, 8} {
				w := work("a", i, token)
				k.Begin(w)
				k.End(w)
			}
		}, "a (token 7, since 1s) begins k after a (token 9, since 0s), whose token is not smaller\n" +
			"a (token 8, since 2s) begins k after a (token 9, since 0s), whose token is not smaller"},
		{"told late, when it is over", func(k *Keys[int]) {
			k.Begin(work("b", 2, 7))
			a := work("a", 1, 5)
			a.Live = func() bool { return false }
			k.Begin(a)
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var faults []string
			c.tell(NewKeys(func(_ *Work[int], fault string) { faults = append(faults, fault) }))
			if got := strings.Join(faults, "\n"); got != c.want {
				t.Errorf("violations %q, want %q", got, c.want)
			}
		})
	}
}

func TestKeysLive(t *testing.T) {
	k := NewKeys(func(_ *Work[int], fault string) { t.Error(fault) })
	a, b, c := &Work[int]{Key: "x", Token: 1}, &Work[int]{Key: "y", Token: 1}, &Work[int]{Key: "z", Token: 1}
	c.Live = func() bool { return false }
	for _, w := range []*Work[int]{a, b, c} {
		k.Begin(w)
	}
	k.End(a)
	if live := k.Live(); len(live) != 1 || live[0] != b {
		t.Errorf("live are %v, want %v alone", live, b)
	}
}

package main

import (
	"math/rand/v2"
	"reflect"
	"testing"
	"time"
)

func TestDraw(t *testing.T) {
	a, b := rand.New(rand.NewPCG(7, 0)), rand.New(rand.NewPCG(7, 0))
	seen := map[string]int{}
	for range 5000 {
		d, again := draw(a, 2), draw(b, 2)
		if d.inject == nil {
			t.Fatal("nothing was drawn")
		}
		d.inject, again.inject = nil, nil
		if !reflect.DeepEqual(d, again) {
			t.Fatalf("the same seed draws %v and %v", d, again)
		}
		seen[d.kind]++
		if l := d.length(10 * time.Second); l < 50*time.Millisecond || l > 17*time.Second {
			t.Fatalf("a fault of %v", l)
		}
		if d.pause < 100*time.Millisecond || d.pause > 5*time.Second {
			t.Fatalf("a pause of %v", d.pause)
		}
	}
	for _, k := range kinds {
		if seen[k.name] == 0 {
			t.Errorf("%s was never drawn", k.name)
		}
	}
}

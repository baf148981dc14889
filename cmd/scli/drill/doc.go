// SPDX-License-Identifier: Apache-2.0

// Package drill rehearses faults on a running cluster: a volume of its own is written,
// read and compared while a fault is ordered that ends by itself, and a report says
// whether all went as it should.
//
//	metadata manager: may it be?  ──>  own volume, load  ──>  order  ──>  healthy again
//	                                                                        │
//	                            volume deleted  <──  report  <──  every byte compared
package drill

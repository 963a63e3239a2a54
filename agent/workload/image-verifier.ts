/** Says of a container's image what its signatures say. */
export interface ImageVerifier {
  /**
   * Values of selectors for the image, named as the runtime names it: repository and digest. Throws `denied` when it is
   * not signed as it must be, and `unavailable` when that cannot be found out.
   */
  verify(image: string): Promise<readonly string[]>;
}

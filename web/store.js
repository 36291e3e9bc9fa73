export const list = async () => /** @type {any[]} */ ([]);
/** @param {string} _id */
export const remove = async (_id) => {};
export const usage = async () => ({ used: 0, quota: 0 });
